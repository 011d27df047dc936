#!/bin/sh
# A full desktop session: an X server that VNC viewers connect to, a session bus, Xfce, sound that plays,
# a browser, a terminal and an editor. It lasts as long as its X server.
set -eu
mkdir -m 700 "$HOME" "$HOME/runtime"
cd "$HOME"
export XDG_RUNTIME_DIR="$HOME/runtime"

mkfifo server-ready
# The server says on descriptor 3 when it is ready for its clients.
Xtigervnc :0 -desktop "$(hostname)" -geometry 1280x800 -depth 24 \
	-rfbport 5900 -SecurityTypes None -displayfd 3 3>server-ready &
server=$!
read -r display <server-ready
export DISPLAY=":$display"

eval "$(dbus-launch --sh-syntax)"
pulseaudio -n --daemonize=no --exit-idle-time=-1 --disallow-exit \
	-L module-native-protocol-unix -L module-null-sink &
(until pactl info; do sleep 0.1; done >/dev/null 2>&1; exec pacat /dev/zero) &
xfce4-session &
xfce4-terminal &
mousepad &
echo '<title>page</title><h1>A page</h1>' >page.html
firefox-esr --no-remote "file://$HOME/page.html" &

# It changes the picture fifty times a second, so that a viewer notices any pause.
# shellcheck disable=SC2016 # the variables are perl's
xterm -fa Monospace -fs 20 -geometry 11x1+900+600 -title counter -e perl -e '
	$| = 1; for (;;) { printf "\r%9d", ++$n; select undef, undef, undef, 0.02 }' &
# The browser's window would cover it.
until wmctrl -r counter -b add,above; do sleep 0.2; done 2>/dev/null

wait "$server"
