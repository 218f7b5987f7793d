"""A worker that takes its listening sockets as systemd gives them, and speaks sd_notify by hand.

Standard library only. Words on the command line change what it does:

  quiet        says nothing to the service manager
  never        does not say that it is ready
  extend       asks for more time to get ready, and says it then
  einhorn      acknowledges as Einhorn's workers do
  unready      does not wait for clients
  accept       blocks in accept(2) instead of using epoll
  family       stops as php-fpm does: the process that was started ends at once, its child finishes
  stubborn     does not stop
  ping         says WATCHDOG=1 ten times a second, until it is asked to /hang
  resident     has no sockets; lives until it is stopped

A request for /slow/MS is answered after that time, /notify/WORDS says that to the service manager
(`%20` and the like are decoded), /env/NAME answers a variable, /names the names of the sockets, /fds
how many there are, /blocking whether the first blocks, /spawn/… has another process say it, /quit
ends the process at once, and anything else answers the process id.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

words = set(sys.argv[1:])
clients = threading.Semaphore(0)
busy = 0
lock = threading.Lock()
hanging = threading.Event()


def notify(text, address=None):
    address = address or os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address[0] == "@" else address)
        out.sendall(text.encode("utf-8", "surrogateescape"))


def sockets():
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    return [socket.socket(fileno=3 + n) for n in range(int(os.environ["LISTEN_FDS"]))]


def body_of(path):
    what, _, rest = path[1:].partition("/")
    rest = urllib.parse.unquote(rest)
    if what == "slow":
        # In one piece: other threads write, too.
        os.write(1, f"slow {rest}\n".encode())
        time.sleep(int(rest) / 1000)
    elif what == "notify":
        notify(rest)
    elif what == "spawn":
        subprocess.run([sys.executable, __file__, "say", rest], check=True)
    elif what == "env":
        return os.environ.get(rest, "-")
    elif what == "names":
        return os.environ.get("LISTEN_FDNAMES", "-")
    elif what == "fds":
        return str(len(listeners))
    elif what == "blocking":
        # The flag of the open file, which all who have the socket share.
        return "yes" if os.get_blocking(3) else "no"
    elif what == "hang":
        hanging.set()
    elif what == "quit":
        os._exit(3)
    return str(os.getpid())


def serve(client):
    global busy
    try:
        client.settimeout(30)
        head = b""
        while b"\r\n\r\n" not in head:
            more = client.recv(4096)
            if not more:
                return
            head += more
        body = body_of(head.split(b" ")[1].decode())
        answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s\n"
        client.sendall((answer % (len(body) + 1, body)).encode())
    except OSError:
        pass
    finally:
        client.close()
        with lock:
            busy -= 1


def take(client):
    global busy
    with lock:
        busy += 1
    client.setblocking(True)
    threading.Thread(target=serve, args=(client,), daemon=True).start()


def loop_of_epoll(listeners, wake):
    selector = selectors.EpollSelector()
    selector.register(wake, selectors.EVENT_READ)
    for listener in listeners:
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is wake:
                selector.close()
                return
            try:
                take(key.fileobj.accept()[0])
            except BlockingIOError:
                pass


def loop_of_accept(listener):
    while True:
        take(listener.accept()[0])


def ping():
    while not hanging.is_set():
        notify("WATCHDOG=1")
        time.sleep(0.1)


def acknowledge():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
        out.connect(os.environ["EINHORN_SOCK_PATH"])
        line = {"command": "worker:ack", "pid": os.getpid()}
        out.sendall(json.dumps(line).encode() + b"\n")


def finish():
    while True:
        with lock:
            if busy == 0:
                return
        time.sleep(0.005)


if sys.argv[1:2] == ["say"]:
    notify(sys.argv[2])
    # Whoever listens looks who has spoken: it must be there still.
    time.sleep(1)
    sys.exit()

listeners = sockets()
if "family" in words:
    # The child serves, the parent only waits; both are of one group.
    child = os.fork()
    if child:
        signal.signal(signal.SIGQUIT, lambda *_: (os.kill(child, signal.SIGQUIT), os._exit(0)))
        while True:
            signal.pause()

reading, writing = socket.socketpair()
stopped = threading.Event()


def stop(*_):
    if "stubborn" in words:
        return
    stopped.set()
    writing.send(b"x")


for which in (signal.SIGTERM, signal.SIGQUIT):
    signal.signal(which, stop)
print("up", os.getpid(), flush=True)
if "accept" in words:
    threading.Thread(target=loop_of_accept, args=(listeners[0],), daemon=True).start()
if "ping" in words:
    threading.Thread(target=ping, daemon=True).start()
if "extend" in words:
    # It needs longer than it is given, and says so.
    notify("EXTEND_TIMEOUT_USEC=20000000")
    time.sleep(5)
    notify("READY=1")
if "einhorn" in words:
    acknowledge()
elif not words & {"quiet", "never"}:
    notify("READY=1\nSTATUS=answers")
if words & {"resident", "accept", "unready"}:
    while not stopped.wait(1000):
        pass
else:
    loop_of_epoll(listeners, reading)
if not words & {"quiet", "never"}:
    notify("STOPPING=1")
finish()
os._exit(0)
