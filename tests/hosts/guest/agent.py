"""Runs on each guest, on port 7000: a JSON object a connection in, the answer out."""

import json
import os
import signal
import socketserver
import subprocess


def shell(request):
    process = subprocess.Popen(
        ["bash", "-c", request["shell"]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=request["secs_max"])
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, status = b"(timed out)", 124
    return json.dumps({"status": status, "output": output.decode(errors="replace")}).encode()


def read(request):
    """The bytes of a file, as a process that opens it only now sees them; all of them unless a range is given."""
    descriptor = os.open(request["read"], os.O_RDONLY)
    try:
        at, left, parts = request.get("offset", 0), request.get("bytes", 1 << 40), []
        while left and (part := os.pread(descriptor, min(left, 1 << 20), at)):
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return b"ok\n" + b"".join(parts)
    finally:
        os.close(descriptor)


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        request = json.loads(self.rfile.readline())
        try:
            self.wfile.write(shell(request) if "shell" in request else read(request))
        except OSError as e:
            self.wfile.write(b"%d\n" % e.errno)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32


Server(("0.0.0.0", 7000), Handler).serve_forever()
