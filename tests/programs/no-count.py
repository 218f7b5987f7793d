# Speaks as much of Node's IPC channel as it must, and does not count its connections: the kind `ipc`.
import json
import os
import socket
import threading

channel = socket.socket(fileno=int(os.environ["NODE_CHANNEL_FD"]))


def serve(client):
    """Answers once, and keeps the connection until its client closes it."""
    with client:
        client.setblocking(True)
        if client.recv(4096):
            body = str(os.getpid())
            client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        while client.recv(4096):
            pass


channel.sendall(b'"ready"\n')
rest, descriptors = b"", []
while True:
    part, received, _, _ = socket.recv_fds(channel, 65536, 8)
    if not part:
        break
    descriptors += received
    *lines, rest = (rest + part).split(b"\n")
    for line in lines:
        if json.loads(line).get("cmd") == "NODE_HANDLE":
            channel.sendall(b'{"cmd":"NODE_HANDLE_ACK"}\n')
            client = socket.socket(fileno=descriptors.pop(0))
            threading.Thread(target=serve, args=(client,)).start()
