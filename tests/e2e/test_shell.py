"""`mallard sql` at a terminal: completion, history, paging, timing, and Ctrl-C."""

import os
import pty
import re
import select
import time

SECONDS = 60


class Terminal:
    """A shell whose standard streams are a terminal."""

    def __init__(self, location, home):
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", "PAGER": "cat"}
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.execve(os.environ["MALLARD_BIN"], ["mallard", "sql", location], environment)
        self.raw = ""
        self.seen = ""

    def send(self, text):
        os.write(self.terminal, text.encode())

    def until(self, pattern):
        """Reads until the pattern is there; what came with it."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen, re.S)):
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} never came: {self.seen!r}"
            self.raw += os.read(self.terminal, 65536).decode(errors="replace")
            # Without what moves the cursor; a sequence that has only begun waits for its end.
            whole, self.raw = re.fullmatch(r"(.*?)(\x1b[^a-zA-Z]*|\r)?", self.raw, re.S).groups(default="")
            self.seen += re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]|\r(?!\n)", "", whole)
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def leave(self):
        self.send("\x04")
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def test_prompt_completes_remembers_pages_and_cancels(launch, tmp_path):
    server = launch()
    shell = Terminal(server.location, tmp_path)
    shell.until("mallard> ")
    shell.send("CREATE TABLE flights AS SELECT range AS id, 'late' AS state\r")
    shell.until(r"\.\.\.> ")
    shell.send("FROM range(100);\r")
    shell.until(r"\d s\r\n.*mallard> ")
    # Of the new table, by one key.
    shell.send("SELECT count(*) AS n FROM fli\t;\r")
    shell.until("FROM flights;")
    shell.until("100.*1 row in .* s")
    shell.until("mallard> ")
    shell.send("FROM flights;\r")
    assert "99" in shell.until("100 rows in .* s"), "all of it is paged, and not the first and last rows"
    shell.until("mallard> ")
    shell.send("SELECT * FROM missing;\r")
    shell.until("error: .*missing.*mallard> ")
    shell.send("SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE a.range * b.range % 7 = 3;\r")
    shell.until("= 3;")
    while server.metric("mallard_queries_running") < 1:
        time.sleep(0.05)
    shell.send("\x03")
    shell.until("cancelled.*mallard> ")
    while server.metric("mallard_queries_running") > 0:
        time.sleep(0.05)
    shell.send(".tables fl%\r")
    shell.until("id BIGINT, state VARCHAR.*mallard> ")
    assert shell.leave() == 0

    again = Terminal(server.location, tmp_path)
    again.until("mallard> ")
    again.send("\x1b[A\x1b[A")
    again.until("range\\(10000000000\\)")
    again.send("\x03")
    again.until("mallard> ")
    assert again.leave() == 0
    history = tmp_path / ".local/state/mallard/history"
    assert history.stat().st_mode & 0o077 == 0, "it is the user's alone"
