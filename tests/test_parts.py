"""Parts: from a name, path, mapping, class or instance to an object, and back to plain data."""

import copy
import json
import pickle
from abc import ABC, abstractmethod

import pytest
import torch
from torch import nn

from cellvit.errors import CellViTError, ConfigError, UnknownPluginError
from cellvit.plugins.components import Configurable, build, import_path, keyword_names, normalise_spec, resolve
from cellvit.plugins.registry import Registry


class Block(Configurable, nn.Module, ABC):
    """Base class: abstract, a module, configurable: as encoders are."""

    @abstractmethod
    def forward(self, x): ...


class Conv(Block):
    def __init__(self, channels: int, *, width: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, width, 1, bias=bias)

    def forward(self, x):
        return self.layer(x)


class Thick(Conv):
    """Passes what it does not know to its parent."""

    def __init__(self, channels: int, *, thickness: int = 1, **kwargs) -> None:
        super().__init__(channels, **kwargs)
        self.thickness = thickness


class Strict(Block):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        if width < 0:
            raise ValueError("negative width")

    def forward(self, x):
        return x


class Plain(Configurable):
    """Without an ``__init__`` of its own."""


class Outsider:
    """Not a block."""


HERE = __name__


@pytest.fixture
def blocks():
    registry = Registry("block", Block, package="cellvit")
    registry.register("conv")(Conv)
    registry.register("strict")(Strict)
    return registry


# From a spec to an object


@pytest.mark.parametrize(
    "spec",
    ["conv", f"{HERE}.Conv", {"class_path": "conv"}, {"class_path": f"{HERE}.Conv", "init_args": None}, Conv],
    ids=["name", "path", "mapping", "mapping-without-args", "class"],
)
def test_every_form_of_a_spec_builds_the_same_part(blocks, spec):
    part = build(blocks, spec, 3)
    assert type(part) is Conv
    assert part.layer.weight.shape == (4, 3, 1, 1)
    assert part.init_args == {}


@pytest.mark.parametrize("path", ["conv", f"{HERE}.Conv"])
def test_init_args_reach_the_part(blocks, path):
    part = build(blocks, {"class_path": path, "init_args": {"width": 7, "bias": False}}, 2)
    assert part.layer.weight.shape == (7, 2, 1, 1)
    assert part.layer.bias is None
    assert part.init_args == {"width": 7, "bias": False}


def test_an_instance_is_returned_as_it_is(blocks):
    part = Conv(3)
    assert build(blocks, part, 99) is part


def test_a_class_local_to_a_function_can_be_built(blocks):
    class Local(Conv):
        pass

    assert type(build(blocks, Local, 3)) is Local


def test_a_registered_name_may_contain_dots(blocks):
    blocks.register("conv.v2")(Conv)
    assert resolve(blocks, "conv.v2") is Conv


def test_building_does_not_change_the_spec(blocks):
    spec = {"class_path": "conv", "init_args": {"width": 7}}
    before = copy.deepcopy(spec)
    build(blocks, spec, 3).init_args["width"] = 1
    normalise_spec(spec, what="block")["init_args"]["width"] = 2
    assert spec == before


# Bad specs


@pytest.mark.parametrize("path", ["conv", f"{HERE}.Conv"])
def test_unknown_argument_lists_the_known_ones(blocks, path):
    with pytest.raises(ConfigError) as caught:
        build(blocks, {"class_path": path, "init_args": {"wdith": 7}}, 3)
    assert str(caught.value) == f"block {path!r} takes no argument ['wdith']; it takes: bias, width"


def test_a_size_cannot_be_configured(blocks):
    with pytest.raises(ConfigError, match=r"takes no argument \['channels'\]"):
        build(blocks, {"class_path": "conv", "init_args": {"channels": 3}}, 3)


def test_part_without_arguments_says_it_takes_none():
    plains = Registry("plain", Plain, package="cellvit")
    with pytest.raises(ConfigError, match=r"takes no argument \['x'\]; it takes: none"):
        build(plains, {"class_path": f"{HERE}.Plain", "init_args": {"x": 1}})
    assert isinstance(build(plains, Plain), Plain)


def test_missing_argument_is_a_config_error(blocks):
    with pytest.raises(ConfigError, match=r"block 'strict' cannot be built: missing a required.* 'width'"):
        build(blocks, "strict")


def test_sizes_that_do_not_fit_are_a_config_error(blocks):
    with pytest.raises(ConfigError, match="too many positional arguments"):
        build(blocks, "conv", 3, 4)


def test_errors_of_the_constructor_pass_through(blocks):
    with pytest.raises(ValueError, match="negative width") as caught:
        build(blocks, {"class_path": "strict", "init_args": {"width": -1}})
    assert not isinstance(caught.value, CellViTError)


@pytest.mark.parametrize("spec", [f"{HERE}.Outsider", Outsider, f"{HERE}.HERE", "math.sqrt", int])
def test_what_is_not_a_subclass_is_refused(blocks, spec):
    with pytest.raises(ConfigError, match=r"block '.*' does not derive from Block; subclass it"):
        build(blocks, spec)


@pytest.mark.parametrize("path", ["no_such_package.Conv", f"{HERE}.NoSuchClass", "math.", ".math.sqrt", "a..b", "."])
def test_path_that_leads_nowhere(blocks, path):
    with pytest.raises(UnknownPluginError, match="cannot be imported") as caught:
        build(blocks, path)
    assert repr(path) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_name_that_is_not_registered_lists_the_known_ones(blocks):
    with pytest.raises(UnknownPluginError, match="did you mean 'conv'"):
        build(blocks, "konv")


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"class_path": None},
        {"class_path": 3},
        {"init_args": {"width": 1}},
        {"class_path": "conv", "width": 1},
        {"class_path": "conv", "init_args": [1]},
        {"class_path": "conv", "init_args": "width"},
        {"conv": {"width": 1}},
    ],
)
def test_mapping_of_another_form_is_refused(blocks, spec):
    with pytest.raises(ConfigError, match="is not a part; write a name or") as caught:
        build(blocks, spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("spec", [None, 3, ["conv"], Outsider()])
def test_thing_of_another_kind_is_refused(blocks, spec):
    with pytest.raises(ConfigError, match="is neither a name, a mapping"):
        build(blocks, spec)


@pytest.mark.parametrize("key", [1, None])
def test_argument_name_that_is_not_a_string_is_refused(blocks, key):
    with pytest.raises(ConfigError, match="takes no argument"):
        build(blocks, {"class_path": "conv", "init_args": {key: 1, "a": 2}}, 3)


# From an object back to plain data


@pytest.mark.parametrize("args", [{}, {"width": 9}, {"width": 9, "bias": False}])
def test_a_part_can_be_rebuilt_from_its_own_description(blocks, args):
    part = build(blocks, {"class_path": "conv", "init_args": args}, 3)
    plain = normalise_spec(part, what="block")
    assert plain == {"class_path": f"{HERE}.Conv", "init_args": args}
    twin = build(blocks, json.loads(json.dumps(plain)), 3)
    assert normalise_spec(twin, what="block") == plain
    twin.load_state_dict(part.state_dict())


def test_every_form_has_a_long_form():
    assert normalise_spec("conv", what="block") == {"class_path": "conv", "init_args": {}}
    assert normalise_spec(Conv, what="block") == {"class_path": f"{HERE}.Conv", "init_args": {}}
    long = {"class_path": "conv", "init_args": {"width": 2}}
    assert normalise_spec(long, what="block") == long
    with pytest.raises(ConfigError, match="neither"):
        normalise_spec(Outsider(), what="block")


def test_only_configuration_is_remembered():
    assert Conv(3, width=5).init_args == {"width": 5}
    assert Conv(channels=3, width=5).init_args == {"width": 5}


def test_arguments_passed_on_to_the_parent_are_remembered():
    part = Thick(3, thickness=2, width=5)
    assert part.init_args == {"thickness": 2, "width": 5}
    assert part.layer.out_channels == 5
    assert Thick(channels=3, width=5).init_args == {"width": 5}


def test_keyword_names():
    assert keyword_names(Conv) == {"width", "bias"}
    assert keyword_names(Plain) == set()
    assert keyword_names(Thick) is None


def test_class_without_init_takes_no_arguments():
    for arguments in [(1,), ()]:
        keywords = {} if arguments else {"x": 1}
        with pytest.raises(TypeError, match=r"Plain\(\) takes no arguments"):
            Plain(*arguments, **keywords)


def test_abstract_base_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Block()


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("make", [lambda: Conv(3, width=5), lambda: Thick(3, width=5, thickness=2), lambda: Plain()])
def test_copies_keep_their_configuration(copier, make):
    part = make()
    twin = copier(part)
    assert twin is not part
    assert type(twin) is type(part)
    assert twin.init_args == part.init_args
    if isinstance(part, Conv):
        image = torch.ones(1, 3, 2, 2)
        assert torch.equal(twin(image), part(image))


def test_a_deep_copy_has_its_own_configuration():
    part = Conv(3, width=5)
    copy.deepcopy(part).init_args["width"] = 1
    assert part.init_args == {"width": 5}


def test_configuration_is_no_part_of_the_state():
    assert set(Conv(3, width=5).state_dict()) == {"layer.weight", "layer.bias"}


def test_import_path():
    assert import_path("torch.nn.Conv2d", what="layer") is nn.Conv2d
    with pytest.raises(UnknownPluginError, match=r"layer 'torch.nn.Conv9' cannot be imported"):
        import_path("torch.nn.Conv9", what="layer")
