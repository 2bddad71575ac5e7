"""Networks on disk: what comes back is what went in, and nothing else is taken for one."""

import json

import pytest
import torch

from laws import looped
from networks import inverter, same_bits, target
from oneway.defenses import load_module, save_module
from oneway.errors import CorruptDataError, MissingDataError

NETWORKS = {"inverter": inverter, "target": target}


@looped("kind", NETWORKS)
def test_a_network_comes_back_bit_for_bit_and_ready_to_use(tmp_path, kind):
    network = NETWORKS[kind]()
    facts = {"held_out_errors": [0.1, 1 / 3, 2**-40], "note": "é"}
    save_module(tmp_path / "deep" / "file.safetensors", network, kind, facts)
    stored = load_module(tmp_path / "deep" / "file.safetensors", kind)
    assert same_bits(stored.module, network)
    assert stored.module.architecture == network.architecture
    assert (stored.kind, stored.facts) == (kind, facts)
    assert not any(module.training for module in stored.module.modules())


def test_a_network_laid_out_for_convolutions_comes_back_bit_for_bit(tmp_path):
    network = target().to(memory_format=torch.channels_last)
    save_module(tmp_path / "file", network, "target", {})
    assert same_bits(load_module(tmp_path / "file").module, network)


@looped("share", [0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    path = tmp_path / "file.safetensors"
    save_module(path, inverter(), "inverter", {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptDataError, match=r"file\.safetensors is not a network.*Pass a file"):
        load_module(path)


@looped(
    "header",
    [
        None,
        "{",
        "[]",
        json.dumps({"kind": "defense", "architecture": {}, "facts": {}}),
        json.dumps({"kind": "target", "architecture": {"colour": 1}, "facts": {}}),
        json.dumps({"kind": "inverter", "architecture": inverter().architecture}),
        json.dumps(
            {
                "kind": "inverter",
                "architecture": inverter().architecture | {"width": 8},
                "facts": {},
            }
        ),
    ],
    ids=["none", "no JSON", "a list", "unknown kind", "unknown option", "no facts", "other width"],
)
def test_a_file_that_another_program_wrote_is_refused(tmp_path, header):
    from safetensors.torch import save_file

    path = tmp_path / "file.safetensors"
    state = {name: value.contiguous() for name, value in inverter().state_dict().items()}
    save_file(state, path, metadata=None if header is None else {"oneway": header})
    with pytest.raises(CorruptDataError, match="not a network that oneway wrote"):
        load_module(path)


def test_a_network_of_another_kind_is_refused_with_both_kinds(tmp_path):
    save_module(tmp_path / "file", target(), "target", {})
    with pytest.raises(CorruptDataError, match="of kind 'target', not 'inverter'"):
        load_module(tmp_path / "file", "inverter")
    assert load_module(tmp_path / "file").kind == "target"


@looped(
    ("kind", "command"),
    [("inverter", "oneway train inverter"), ("target", "oneway train"), (None, "oneway train")],
)
def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path, kind, command):
    with pytest.raises(MissingDataError, match=rf"no network file .*absent.*`{command}"):
        load_module(tmp_path / "absent", kind)
