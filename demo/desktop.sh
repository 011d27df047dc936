#!/bin/sh
# A desktop session: an X server that VNC viewers connect to, a window manager, a clock with a second
# hand, a counter and a terminal. It lasts as long as its X server.
set -eu
mkdir -m 700 "$HOME"
cd "$HOME"

mkfifo server-ready manager-ready counter-ready

# The server says on descriptor 3 when it is ready for its clients.
Xtigervnc :0 -desktop "$(hostname)" -geometry 880x560 -depth 24 \
	-rfbport 5900 -SecurityTypes None -displayfd 3 3>server-ready &
server=$!
read -r display <server-ready
export DISPLAY=":$display"

# A window that asks for its size while no manager is there yet would wait five seconds for an answer
# (wmTimeout of X's toolkit).
openbox --startup "sh -c 'echo >manager-ready'" &
read -r _ <manager-ready

xclock -update 1 -geometry 200x200+650+30 -title clock &

# It changes the picture fifty times a second, so that a viewer notices any pause.
# shellcheck disable=SC2016 # the variables are perl's
xterm -fa Monospace -fs 20 -geometry 11x1+650+290 -title counter -e perl -e '
	open READY, ">counter-ready"; print READY "\n"; close READY;
	$| = 1; for (;;) { printf "\r%9d", ++$n; select undef, undef, undef, 0.02 }' &
read -r _ <counter-ready
rm server-ready manager-ready counter-ready

# Last, so that it gets the keyboard.
export PS1='\h:\w\$ '
xterm -fa Monospace -fs 11 -geometry 66x26+20+30 -title terminal -e bash --norc &

wait "$server"
