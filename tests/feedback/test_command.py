"""The command line, from an empty folder to a reward model of one's own judgements."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.feedback.agreement import overview
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.playground import task
from tests.guarded import python_path

ROOT = Path(__file__).parents[2]
COMMANDS = ["ask", "rank", "serve", "status", "export", "backup", "invite", "forget"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def feedback(*words: str) -> int:
    return main(["feedback", *words])


def write(name: str, *rows: Any) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


PAIRS = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys; from rlhf_lightning.__main__ import main; status = main(sys.argv[1:]); "
        "print([name for name in ('torch', 'lightning', 'starlette', 'numpy', 'transformers') if name in sys.modules]); "
        "sys.exit(status)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, "feedback", *words], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("usage: rlhf_lightning feedback")
    assert found.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "store feedback.db is not there; make it with `feedback ask`"),
        (["export", "x.jsonl"], "store feedback.db is not there"),
        (["backup", "x.db"], "store feedback.db is not there"),
        (["forget", "Ada"], "store feedback.db is not there"),
        (["serve"], "store feedback.db is not there"),
        (["rank", "--strategy", "random"], "store feedback.db is not there"),
        (["rank", "--strategy", "margin"], "--strategy margin reads scores; set --reward to the export"),
        (["rank", "--strategy", "random", "--reward", "r"], "--strategy random reads no scores; remove --reward"),
        (["rank", "--strategy", "margins"], "--strategy is 'margins'; did you mean 'margin'"),
        (["rank", "--strategy", "nosuch.Mine"], "--strategy is nosuch.Mine, which cannot be imported"),
        (["rank", "--strategy", "random", "--random-share", "2"], "--random-share is 2.0; set it from 0 to 1"),
        (["rank", "--strategy", "random", "--every", "0"], "--every is 0; set it to 1 or more"),
        (["ask"], "nothing to ask; set --prompts, --pairs, --gold, --training or --argilla"),
        (["ask", "--prompts", "p.jsonl"], "--prompts needs a --model that responds; set --pairs instead"),
        (["ask", "--model", "m"], "--model needs --prompts"),
        (["ask", "--pairs", "nosuch.jsonl"], "data file nosuch.jsonl is not there"),
        (["ask", "--argilla", "x.json", "--kind", "edit"], "Argilla's records are pairs and --kind is edit"),
        (["export", "x.json", "--format", "argilla", "--kind", "ratings"], "Argilla's records are pairs"),
        (["export", "x.json", "--format", "argilla", "--decided"], "--decided is of rows"),
        (["export", "x.jsonl", "--kind", "ratings", "--ties"], "--ties is of pairs and --kind is ratings"),
        (["export", "x.jsonl", "--criterion", "short"], "--criterion is of ratings and --kind is pairs"),
        (["ask", "--pairs", "p.jsonl", "--criteria", "short"], "--criteria are of ratings and --kind is pair"),
        (["ask", "--pairs", "p.jsonl", "--responses", "3"], "--responses is of generated responses; set --prompts"),
        (["ask", "--pairs", "p.jsonl", "--temperature", "0.5"], "--temperature is of generated responses"),
        (["ask", "--argilla", "a.json", "--image-column", "c"], "--image-column is of recorded responses"),
        (["ask", "--pairs", "p.jsonl", "--kind", "rating", "--criteria", ""], "criteria are ''; give each a name"),
        (["serve", "--port", "65536"], "--port: 65536 is outside 0 to 65535"),
        (["invite", "Ada", "--url", "labels.example"], "'labels.example' is no address of a page"),
        (["invite", "Ada", "--url", "ftp://labels.example"], "is no address of a page"),
        (["status", "--store", "."], "store . is a folder"),
    ],
)
def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert feedback(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["nosuch"], ["ask", "--kind", "song"], ["ask", "--judgements", "0"]])
def test_words_that_are_no_command(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert feedback(*words) == 2
    assert "error:" in capsys.readouterr().err


def test_ask_adds_each_item_once_and_keeps_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write("pairs.jsonl", *PAIRS)
    gold = write("gold.jsonl", {"prompt": "g", "chosen": "good", "rejected": "bad"})
    training = write("training.jsonl", {"prompt": "t", "responses": ["a", "b"], "answer": {"choice": 1}})
    words = ["ask", "--pairs", pairs, "--gold", gold, "--training", training]
    assert feedback(*words, "--judgements", "2") == 0
    assert capsys.readouterr().out == (
        "training items: 1 new, 0 in the store already\n"
        "gold items: 1 new, 0 in the store already\n"
        "recorded items: 3 new, 0 in the store already\n"
    )
    assert feedback(*words) == 0
    assert "recorded items: 0 new, 3 in the store already" in capsys.readouterr().out
    with Store("feedback.db") as store:
        assert store.settings.judgements_per_item == 2
        with store.database.read() as connection:
            assert {row["wanted"] for row in connection.execute("SELECT wanted FROM items")} == {2}


def test_ratings_take_the_criteria(capsys: pytest.CaptureFixture[str]) -> None:
    rows = write("rows.jsonl", {"prompt": "p", "response": "r"})
    assert feedback("ask", "--pairs", rows, "--kind", "rating", "--criteria", "polite", "short", "--store", "r.db") == 0
    with Store("r.db") as store:
        ada = store.invited(store.invite("Ada"))
        assert ada is not None
        lease = store.next(ada.id)
        assert lease is not None
        assert lease.item.criteria == ("polite", "short")


def _unknown(host: str, *args: object, **kwargs: object) -> None:
    """What a name server says; the tests ask none."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("host", ["192.0.2.1", "nosuch.invalid"])
def test_an_address_of_another_machine_is_no_host(
    capsys: pytest.CaptureFixture[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    if not host[0].isdigit():
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    assert feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS)) == 0
    assert feedback("serve", "--host", host, "--port", "0") == 2
    assert f"--host is {host}, which is no address of this machine; set --host" in capsys.readouterr().err


def test_a_backup_names_the_folder_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS)) == 0
    assert feedback("backup", "nosuch/copy.db") == 2
    assert "backup nosuch/copy.db: there is no folder nosuch; make the folder first" in capsys.readouterr().err


def test_the_same_file_with_more_judgements_asks_more(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write("pairs.jsonl", *PAIRS)
    assert feedback("ask", "--pairs", pairs) == 0
    assert feedback("invite", "Ada") == 0
    with Store("feedback.db") as store:
        (ada,) = store.people()
        while (lease := store.next(ada.id)) is not None:
            store.save(ada.id, lease.id, {"choice": 0})
        assert overview(store).settled == 3
    capsys.readouterr()
    assert feedback("ask", "--pairs", pairs, "--judgements", "2") == 0
    assert capsys.readouterr().out == (
        "recorded items: 0 new, 3 in the store already; 3 of them take more judgements now\n"
    )
    assert feedback("ask", "--pairs", pairs, "--judgements", "1") == 0
    assert "take more" not in capsys.readouterr().out
    with Store("feedback.db") as store:
        assert overview(store).open == 3
        bob = store.invited(store.invite("Bob"))
        assert bob is not None
        assert store.next(ada.id) is None
        assert store.next(bob.id) is not None


@pytest.mark.parametrize("target", ["feedback.db", "feedback.db-wal", "feedback.db.serving", "./feedback.db", "link"])
def test_an_export_never_replaces_a_store(capsys: pytest.CaptureFixture[str], target: str) -> None:
    assert feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS)) == 0
    Path("link").symlink_to("feedback.db")
    with Store("feedback.db") as store:
        ada = store.invited(store.invite("Ada"))
        assert ada is not None
        lease = store.next(ada.id)
        assert lease is not None
        store.save(ada.id, lease.id, {"choice": 0})
    assert feedback("export", target) == 2
    assert f"export {Path(target)} would replace an SQLite database" in capsys.readouterr().err
    with Store("feedback.db") as store:
        assert len(store.latest()) == 1


def test_an_image_column_of_another_name() -> None:
    png = b"\x89PNG\r\n\x1a\n"
    Path("a.png").write_bytes(png + b"a"), Path("b.png").write_bytes(png + b"b")
    rows = write("clips.jsonl", {"prompt": "which?", "clips": ["a.png", "b.png"]})
    assert feedback("ask", "--pairs", rows, "--image-column", "clips") == 0
    with Store("feedback.db") as store:
        assert store.media(1, 1) == ("image/png", png + b"b")


def test_invite_prints_a_link_and_forget_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert feedback("invite", "Ada", "--role", "adjudicator", "--url", "https://labels.example/feedback/") == 0
    link = capsys.readouterr().out.strip()
    prefix, token = link.rsplit("/", 1)
    assert prefix == "https://labels.example/feedback/join"
    with Store("feedback.db") as store:
        ada = store.invited(token)
        assert ada is not None
        assert ada.roles == {"annotator", "adjudicator"}
        assert feedback("forget", "Ada") == 0
        assert store.invited(token) is None
    assert feedback("forget", "Ada") == 2


def test_backup_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("krippendorff")
    feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS))
    assert feedback("backup", "copy.db") == 0
    capsys.readouterr()
    assert feedback("status", "--store", "copy.db") == 0
    assert capsys.readouterr().out.startswith("items       3: 3 open, 0 settled, 0 disputed, 0 adjudicated\n")
    assert feedback("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["open"] == 3


@pytest.mark.parametrize(("command", "package"), [("serve", "starlette"), ("status", "krippendorff")])
def test_a_package_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS), "--judgements", "2")
    with Store("feedback.db") as store:
        for choice, name in enumerate(("Ada", "Bob")):
            somebody = store.invited(store.invite(name))
            assert somebody is not None
            while (lease := store.next(somebody.id)) is not None:
                store.save(somebody.id, lease.id, {"choice": choice})
    for module in [name for name in sys.modules if name.startswith("rlhf_lightning.feedback.server")]:
        monkeypatch.delitem(sys.modules, module)
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert feedback(command) == 2
    assert f"needs {package}; pip install 'rlhf_lightning[feedback]'" in capsys.readouterr().err


def test_serve_keeps_settings_and_guidelines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("rlhf_lightning.feedback.server")
    called: dict[str, Any] = {}
    monkeypatch.setattr(server, "serve", lambda store, **given: called.update(given))
    feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS))
    Path("guide.md").write_text("Be kind.")
    settings = ["--title", "T", "--minimum-seconds", "2", "--lease-seconds", "60", "--gold-share", "0.2", "--strength"]
    where = ["--host", "0.0.0.0", "--port", "9", "--root-path", "/f", "--guidelines", "guide.md", "--reasons", "a", "b"]
    assert feedback("serve", *settings, *where) == 0
    assert called == {"host": "0.0.0.0", "port": 9, "root_path": "/f"}
    assert "nobody owns feedback.db yet" in capsys.readouterr().out
    feedback("invite", "Ada", "--role", "owner")
    assert feedback("serve", "--no-strength") == 0  # what is not given stays as it was
    assert "nobody owns" not in capsys.readouterr().out
    with Store("feedback.db") as store:
        found = store.settings
        assert (found.title, found.minimum_seconds, found.lease_seconds, found.gold_share) == ("T", 2.0, 60.0, 0.2)
        assert (found.strength, found.reasons) == (False, ("a", "b"))
        assert store.guidelines() == (1, "Be kind.")
    assert feedback("serve", "--guidelines", "missing.md") == 2
    assert "guidelines missing.md cannot be read: No such file" in capsys.readouterr().err


def test_export_for_argilla() -> None:
    feedback("ask", "--pairs", write("pairs.jsonl", *PAIRS))
    with Store("feedback.db") as store:
        ada = store.invited(store.invite("Ada"))
        assert ada is not None
        lease = store.next(ada.id)
        assert lease is not None
        store.save(ada.id, lease.id, {"choice": 1})
    assert feedback("export", "records.json", "--format", "argilla") == 0
    (record,) = json.loads(Path("records.json").read_text())
    assert record["responses"]["preference"][0]["value"] == "response2"


def documented(heading: str) -> list[str]:
    """The commands below a heading of the documentation, block by block."""
    text = (ROOT / "docs" / "feedback.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)


def shell(commands: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path(ROOT)}
    found = subprocess.run(["bash", "-ec", commands], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_documented_way_from_an_empty_folder_to_a_reward_model() -> None:
    pytest.importorskip("krippendorff")
    before, serve, after = documented("From an empty folder to a reward model")
    assert serve.startswith("python -m rlhf_lightning feedback serve")
    shell(before)
    with Store("feedback.db") as store:
        (ada,) = store.people()
        assert ada.roles == {"annotator", "adjudicator", "owner"}
        while (lease := store.next(ada.id)) is not None:
            scores = [task.true_reward(lease.item.prompt[-1].content, r.text) for r in lease.item.responses]
            choice = "tie" if scores[0] == scores[1] else int(scores[1] > scores[0])
            store.save(ada.id, lease.id, {"choice": choice}, seconds=2.0)
        assert len(store.latest()) >= 45
    shell(after)
    summary = json.loads(Path("runs/my-reward/summary.json").read_text())
    assert 0 <= summary["val/preference/accuracy"]["after"] <= 1
    assert (Path("runs/my-reward/export") / "model.safetensors").is_file()


def test_an_ask_that_fails_leaves_no_empty_store(tmp_path: Path) -> None:
    store, file = tmp_path / "judgements.sqlite", tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "no pair"}\n')
    assert main(["feedback", "ask", "--store", str(store), "--pairs", str(file)]) == 2
    assert not list(tmp_path.glob("judgements*"))
    file.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert main(["feedback", "ask", "--store", str(store), "--pairs", str(file)]) == 0
    file.write_text('{"prompt": "no pair"}\n')
    assert main(["feedback", "ask", "--store", str(store), "--pairs", str(file)]) == 2
    assert store.is_file()  # with what was there before
