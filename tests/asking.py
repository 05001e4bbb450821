"""A server of this process on a port of loopback, and a client of it."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hf_multitask.serving import Settings
from hf_multitask.serving.app import make_server
from hf_multitask.serving.served import ServedPipeline


class Gated(ServedPipeline):
    """A pipeline that answers when its gate is open, and counts its passes."""

    gate, passes = None, ()

    def answers(self, items):
        self.gate.wait(60)
        self.passes.append(len(items))
        return super().answers(items)


class Client:
    """Requests to a port."""

    def __init__(self, port):
        self.port = port

    def send(self, method, path, body=None, **headers):
        """Status, content and headers of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
            if content and response.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return response.status, content, response.headers
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.send("GET", path, **headers)[:2]

    def ask(self, inputs, **fields):
        """The answer to inputs."""
        status, content, _ = self.send("POST", "/predict", json.dumps({"inputs": inputs, **fields}))
        assert status == 200, content
        return content

    def ask_all(self, bodies):
        """The responses to requests that are sent at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.send("POST", "/predict", json.dumps(body)), bodies))

    def figure(self, name):
        """A figure of /metrics."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


class Running(Client):
    """A server in a thread, and its client."""

    def __init__(self, pipeline, **settings):
        self.pipeline, gate = pipeline, threading.Event()
        gate.set()
        pipeline.gate, pipeline.passes = gate, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(self.listener.getsockname()[1])
        self.server = make_server(pipeline, Settings(model="out", **settings))
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        wait(lambda: self.server.started)

    @property
    def batcher(self):
        return self.server.service.batcher

    def terminate(self):
        """What a signal does."""
        self.server.handle_exit(15, None)

    def close(self):
        self.pipeline.gate.set()
        self.terminate()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.listener.close()


def wait(condition, seconds=30):
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "It did not happen in time."
        time.sleep(0.005)
