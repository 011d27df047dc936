"""Sends UDP datagrams to PORT at the TARGETS with each of the SOURCES as source
address, on raw sockets, and then honest ones to PORT+1. Prints "sent", or
"refused" if the pod may not have raw sockets."""
import socket
import struct
import sys

port = int(sys.argv[1])
targets, sources = sys.argv[2].split(","), sys.argv[3].split(",")


def datagram(source, target):
    udp = struct.pack("!HHHH", port, port, 8, 0)
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0,
                       socket.inet_aton(source), socket.inet_aton(target)) + udp


outcome = "sent"
try:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for target in targets:
        for source in sources:
            raw.sendto(datagram(source, target), (target, port))
except PermissionError:
    outcome = "refused"
honest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for target in targets:
    honest.sendto(b"honest", (target, port + 1))
print(outcome)
