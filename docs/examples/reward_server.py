"""A reward server: `python reward_server.py 8000`, in whatever environment the reward needs."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from my_reward import polite


class Scores(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"scores": polite(asked["responses"])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


HTTPServer(("127.0.0.1", int(sys.argv[1])), Scores).serve_forever()
