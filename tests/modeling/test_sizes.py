"""A config.json with sizes that its weights do not have ends in one sentence, before memory is taken."""

import json

import pytest
from fork_server import python

LOAD = """
import json, resource, sys
from hf_multitask import MultiTaskModel

limit = 16 << 30  # of addresses: what is asked for in vain ends in an error, and not in a machine without memory
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
folder, config, changes = sys.argv[1], json.load(open(sys.argv[1] + "/config.json")), json.loads(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for where, name, value in changes:
    changed = json.loads(json.dumps(config))
    (changed if where is None else changed[where])[name] = value
    json.dump(changed, open(folder + "/config.json", "w"))
    try:
        MultiTaskModel.from_pretrained(folder)
        print(json.dumps("loads"))
    except (ValueError, OSError) as problem:
        print(json.dumps(str(problem)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
NAMES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
CHANGES = [("backbone_config", name, value) for name in NAMES for value in (10**12, 10**5, -1, None, [1], "x")]
CHANGES += [("backbone_config", name, 10**12) for name in ("max_position_embeddings", "type_vocab_size")]
CHANGES += [("backbone_config", "num_attention_heads", 0), (None, "dtype", "float99"), (None, "backbone_config", [])]
CHANGES += [
    ("backbone_config", "hidden_dropout_prob", float("nan")),
    ("backbone_config", "layer_norm_eps", float("nan")),
]
CHANGES += [(None, "tasks", [None]), (None, "adapters", []), (None, "tasks", 3)]


@pytest.mark.process
def test_absurd_sizes_end_in_a_sentence_and_take_no_memory(build_model, tmp_path):
    build_model().save_pretrained(tmp_path / "saved")
    result = python(LOAD, str(tmp_path / "saved"), json.dumps(CHANGES), timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    *said, grown = [line for line in result.stdout.splitlines() if line]
    assert len(said) == len(CHANGES) and int(grown) < 300_000  # kB
    for change, line in zip(CHANGES, map(json.loads, said), strict=True):
        assert line != "loads" and len(line) < 700 and "\n" not in line.strip(), (change, line)
    by_change = dict(zip([tuple(map(str, change)) for change in CHANGES], map(json.loads, said), strict=True))
    vocabulary = by_change["backbone_config", "vocab_size", str(10**12)]
    assert f"has `vocab_size = {10**12}`, and its weights are " in vocabulary and "saved together" in vocabulary
    assert (
        "has weights of another size for 'backbone.embeddings" in by_change["backbone_config", "vocab_size", "100000"]
    )
    assert "has `hidden_dropout_prob = NaN`" in by_change["backbone_config", "hidden_dropout_prob", "nan"]
    assert "makes no model (ZeroDivisionError" in by_change["backbone_config", "num_attention_heads", "0"]


def test_larger_heads_and_more_layers_are_named(build_model, tmp_path):
    from hf_multitask import MultiTaskModel

    folder = tmp_path / "saved"
    build_model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["num_hidden_layers"] = 30
    config["backbone_config"]["vocab_size"] = 600
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no weights for 'backbone\.encoder\.layer"):
        MultiTaskModel.from_pretrained(folder)
