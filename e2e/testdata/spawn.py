"""Starts programs all the time. Half of that time one is stuck where its parent
has to wait for it: between vfork and exec, opening a FIFO that nobody writes to
yet. Prints how many have been started."""
import os
import time

os.mkfifo("/tmp/gate")
if os.fork() == 0:
    while True:
        time.sleep(0.02)
        open("/tmp/gate", "w").close()
count = 0
while True:
    gate = [(os.POSIX_SPAWN_OPEN, 0, "/tmp/gate", os.O_RDONLY, 0)]
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}, file_actions=gate), 0)
    count += 1
    print(count, flush=True)
    time.sleep(0.02)
