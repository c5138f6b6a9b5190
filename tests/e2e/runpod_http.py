"""The emulator's server: a thread for each connection, answers checked against the specification, failures as told."""

import http.server
import json
import socket
import struct
import sys
import traceback

import runpod_schema
import runpod_views
from runpod_schema import Problem
from runpod_state import stamp


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    emulator = None

    def __init__(self, *args):
        super().__init__(*args)
        self.resets = set()

    def shutdown_request(self, request):
        if request in self.resets:  # no FIN
            self.resets.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, socket.timeout)):
            self.emulator.errors.append(traceback.format_exc())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        emulator = self.server.emulator
        path, _, query = self.path.partition("?")
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        emulator.observe("before", self.command, path)
        fault = emulator.fault(self.command, path)
        who = "?"
        if fault and fault.kind in ("reset", "hang"):
            emulator.note_call(self.command, self.path, fault.kind, who)
            return self.break_off(fault)
        operation, headers, stream = None, {}, None
        try:
            template, parts, operation = runpod_schema.find(self.command, path)
            if fault and fault.kind in ("429", "500", "502", "410"):
                if fault.kind == "429":
                    headers["Retry-After"] = str(fault.seconds)
                raise Problem(int(fault.kind), "injected by the test")
            with emulator.lock:
                who = emulator.authorize(self.headers.get("Authorization"), operation, parts)
                headers = emulator.count_call()
                query = runpod_schema.query(operation, query)
                content = runpod_schema.body(operation, self.headers.get("Content-Type", ""), data)
                if operation["operationId"] == "getPodLogs":
                    status, answer, stream = 200, None, emulator.owned_pod(parts)
                else:
                    status, answer = getattr(emulator, operation["operationId"])(parts, query, content)
        except Problem as problem:
            status, answer = problem.status, problem.body
            headers |= problem.headers
        except Exception:
            emulator.errors.append(traceback.format_exc())
            status, answer = 500, Problem(500, "the emulator failed").body
        if not stream:
            try:
                runpod_schema.check_answer(operation, status, answer)
            except AssertionError:
                emulator.errors.append(traceback.format_exc())
        emulator.observe("after", self.command, path)
        odd = fault and fault.kind in ("drop", "hang after", "garbage", "empty", "empty list")
        emulator.note_call(self.command, self.path, fault.kind if odd else status, who)
        if fault and fault.kind in ("drop", "hang after"):
            return self.break_off(fault)
        if stream:
            return self.send_logs(stream, query, headers)
        self.send(status, answer, headers, fault.kind if odd else "")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def break_off(self, fault):
        """No answer: the connection is reset, or nothing comes until the client has had enough."""
        if fault.kind.startswith("hang"):
            self.connection.settimeout(0.1)
            while not self.server.emulator.stopping.is_set():
                try:
                    if not self.connection.recv(1):
                        break
                except socket.timeout:
                    continue
                except OSError:
                    break
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.resets.add(self.connection)
        self.close_connection = True

    def send(self, status, answer, headers, odd):
        kind = "application/problem+json" if status >= 400 else "application/json"
        data = b"" if answer is None else json.dumps(answer).encode()
        if odd == "garbage":
            kind, data = "text/html", b"<html><body>Just a moment...</body></html>"
        elif odd == "empty":
            data = b""
        elif odd == "empty list":
            data = b"{}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)
        self.wfile.flush()

    def send_logs(self, pod, query, headers):
        """The lines so far and those to come, until the pod is gone or the client goes."""
        emulator = self.server.emulator
        self.send_response(200)
        headers |= {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        lines = runpod_views.log_lines(pod)
        sent = len(lines) - min(len(lines), query.get("tail", 100))
        while True:
            for when, source, line in lines[sent:]:
                if query.get("source", source) == source:
                    event = json.dumps({"ts": stamp(when), "source": source, "line": line})
                    self.wfile.write(f"id: {stamp(when)}\ndata: {event}\n\n".encode())
            sent = len(lines)
            self.wfile.write(b": keep-alive\n\n")
            self.wfile.flush()
            if emulator.stopping.wait(0.1) or pod.id not in emulator.pods:
                return
            lines = runpod_views.log_lines(pod)
