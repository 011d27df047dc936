"""Tries to exceed one limit of the pod: memory, pids or cpu. Prints what came of
it."""
import os
import resource
import signal
import sys
import time

limit = sys.argv[1]
if limit == "memory":
    if (pid := os.fork()) == 0:
        # The first to be ended for lack of memory, before the pod's others.
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("1000")
        hoard = []
        for _ in range(300):
            hoard.append(os.urandom(1 << 20))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else f"ended with {status}")
elif limit == "pids":
    children = []
    try:
        for _ in range(100):
            if (pid := os.fork()) == 0:
                signal.pause()
            children.append(pid)
        print(f"started {len(children)}")
    except BlockingIOError:
        print("refused")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
elif limit == "cpu":
    # Two that do nothing but count, for a second: a quarter of a processor is
    # theirs, and what was saved up in one period of 100 ms.
    begin = time.monotonic()
    for _ in range(2):
        if os.fork() == 0:
            while time.monotonic() < begin + 1:
                pass
            os._exit(0)
    for _ in range(2):
        os.wait()
    elapsed = time.monotonic() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    share = (used.ru_utime + used.ru_stime) / elapsed
    print("within" if share < 0.4 else f"took {share:.2f} processors")
