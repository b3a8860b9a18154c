"""The table of recurrent networks."""

from benchmarks.documents import structure_page
from benchmarks.structure import recurrent
from compressor.stages import DropBlocks


def test_a_pipeline_table_has_every_stage(small_workload, tmp_path, capsys):
    """The reference and each stage have a row with score, size and speed."""
    result = recurrent.run(small_workload, [DropBlocks(remove=0.5)], tmp_path)
    assert [step["stage"] for step in result["steps"]] == ["reference", "drop_blocks"]
    page = structure_page.page({"recurrent": {"networks": {"tiny": result}}})
    assert page.count("| tiny |") == 2
    recurrent.print_table("tiny", result)
    assert "drop_blocks" in capsys.readouterr().out
