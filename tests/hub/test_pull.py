"""Repositories, private ones, branches and tokens over the real wire, and a wire that fails."""

import json

import pytest
from clients import PULL
from processes import run

# A repository with another head on a branch, read back by every door.
SHARE = """
import json, sys
import torch
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModel, AutoTokenizer
from hf_multitask import MultiTaskModel

folder = sys.argv[1]
model, tokenizer = MultiTaskModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model.push_to_hub("me/shared", private=True)
tokenizer.push_to_hub("me/shared")
torch.nn.init.ones_(model.heads["ner"].native.classifier.weight)
model.push_to_hub("me/shared", revision="next", commit_message="Another head")
model.save_pretrained(folder + "/../named", push_to_hub=True)
loaded = [
    AutoModel.from_pretrained("me/shared", revision="next"),
    MultiTaskModel.from_pretrained(snapshot_download("me/shared", revision="next")),
    MultiTaskModel.from_pretrained("me/named"),
]
for one in loaded:
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in model.state_dict().items())
assert not torch.equal(AutoModel.from_pretrained("me/shared").heads["ner"].native.classifier.weight, model.heads["ner"].native.classifier.weight)
print(json.dumps(sorted(branch.name for branch in HfApi().list_repo_refs("me/shared").branches)))
"""

# What the command line says of models, a list of [repository, token]; last, a backbone, a
# push and a revision that are not.
SAID = """
import contextlib, io, json, os, sys
from hf_multitask import FillMask, MultiTaskModel
from hf_multitask.cli import main

said = []
for name, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["predict", name, "A fine place."])
    assert "Traceback" not in err.getvalue()
    said.append([code, out.getvalue(), (err.getvalue().splitlines() or [""])[-1]])
for call in (
    lambda: MultiTaskModel.from_backbone("me/none", tasks={"words": FillMask()}),
    lambda: MultiTaskModel.from_pretrained("me/open").push_to_hub("you/open"),
    lambda: MultiTaskModel.from_pretrained("me/open", revision="nowhere"),
):
    try:
        call()
    except OSError as problem:
        said.append(str(problem))
print(json.dumps(said))
"""


@pytest.fixture
def saved(build_model, tokenizer, tmp_path):
    build_model().save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_private_repositories_branches_and_snapshots(hub, saved):
    assert run(SHARE, str(saved)) == ["main", "next"]
    shared, named = hub.repositories["me/shared"], hub.repositories["me/named"]
    assert shared.private and hub.titles("me/shared") == ["Upload model", "Upload tokenizer", "Another head"]
    assert {"pipeline.py", "extensions.py"} <= named.trees[named.refs["main"]].keys()
    found = run(PULL, "me/shared@main", "me/shared@next")
    (first, _), (second, _) = found["me/shared@main"], found["me/shared@next"]
    assert first["sentiment"] == second["sentiment"] and first["ner"] != second["ner"]


def test_what_the_hub_refuses_is_said_in_a_sentence(hub, saved):
    hub.create("me/shared", private=True)
    hub.upload("me/shared", saved)
    hub.upload("me/open", saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    hub.upload("me/pickle", saved)
    hub.create("me/empty")
    hub.breaks.append(("GET", "me/shared/resolve/", "cut"))  # in the middle, where the client goes on
    hub.breaks.append(("GET", "/model.safetensors", "half"))
    asked = [
        ("me/shared", "hf_you", "there is no such repository, or it is not open to the token. Check the name. Log in"),
        ("me/shared", None, "there is no such repository, or it is not open to the token. Check the name. Log in"),
        ("me/shared", "hf_wrong", "the token is not valid. Log in with `hf auth login`, or give another token."),
        ("me/none", "hf_me", "there is no such repository"),
        ("me/open", "hf_me", "a file did not arrive completely. Load it again; what is in the cache stays."),
        ("me/open", "hf_me", None),
        ("me/shared", "hf_me", None),
    ]
    more = [("me/pickle", "hf_me"), ("me/empty", "hf_me")]
    *said, backbone, pushed, revision = run(SAID, json.dumps([one[:2] for one in asked] + more))
    assert backbone.startswith(f"Model 'me/none' cannot be loaded from {hub.url}: there is no such repository")
    assert pushed.startswith("The repository 'you/open' cannot be pushed to: the token has no right to that (You don't")
    for (name, _, words), (code, out, line) in zip(asked, said):
        if words is None:
            assert code == 0 and set(json.loads(out)) == {"sentiment", "ner"}
        else:
            assert (code, out) == (2, "")
            assert line.startswith(f"hf-multitask: error: Model '{name}' cannot be loaded from {hub.url}: {words}")
    assert "There is no model.safetensors in 'me/pickle'. Weights of another form, such as the pickle" in said[-2][2]
    assert "'me/empty' is not a model: it has no config.json. Check the name." in said[-1][2]
    assert not [path for _, path in hub.requests if path.endswith("pytorch_model.bin")]
    assert "Model 'me/open', revision 'nowhere' cannot be loaded from" in revision
    assert "Name a branch, a tag or a commit" in revision
    assert not hub.breaks


def test_no_network_is_said_in_a_sentence(hub):
    hub.close()  # so that nobody listens
    (code, out, line), *_ = run(
        "import time\ntime.sleep = lambda _: None  # between attempts" + SAID, json.dumps([("me/open", None)])
    )
    assert (code, out) == (2, "")
    assert f"Model 'me/open' cannot be loaded from {hub.url}: the connection failed (" in line
    assert line.endswith("Check the network, and try again.")
