from importlib import import_module

import pytest

from cellvit.errors import UnknownPluginError
from cellvit.plugins.components import import_path
from cellvit.plugins.former_names import FORMER_MODULES, current_names


@pytest.mark.parametrize("module", sorted(set(FORMER_MODULES.values())))
def test_every_module_of_the_table_is_there(module):
    import_module(f"cellvit.{module}")


@pytest.mark.parametrize(
    "path",
    [
        "cellvit.schedules.WarmupCosineLR",
        "cellvit.acceleration.CompiledTraining",
        "cellvit.freezing.PartFreezing",
        "cellvit.finetuning.InitFrom",
        "cellvit.data.pannuke.PanNukeDataModule",
        "cellvit.encoders.sam_attention.FastAttention",
    ],
)
def test_a_class_is_found_where_an_earlier_version_had_it(path):
    if path.endswith("FastAttention"):
        with pytest.raises(UnknownPluginError, match=r"cellvit\.encoders\.sam_attention\.FastAttention"):
            import_path(path, what="class")  # the error names what was asked for
        return
    assert import_path(path, what="class").__name__ == path.rpartition(".")[2]


def test_todays_names_and_those_of_others_stay():
    text = "a: cellvit.model.schedules.WarmupCosineLR\nb: my.cellvit.schedules.X\nc: notcellvit.schedules.Y"
    assert current_names(text) == text
