"""What must not change a result: ranks, memory, partition, threads, guarded buffers. All datasets but /timing and all
attributes but those of the run itself are compared bit by bit, separately for each micro-batch size."""

# cores: 1

import json
import re

import h5py
import pytest

import helpers

OF_THE_RUN = {"n_ranks", "started", "finished", "config", "device"}
# (reference, precision): experts; a sharded file with dense and expert layers; dense with tied embeddings
MODELS = (("olmoe_a", "bf16"), ("qwen3_moe_b", "fp32"), ("qwen3_a", "bf16"))
MICRO_BATCHES = (0, 1, 2)  # of 3 sequences
SURPLUS = 9  # ranks, more than stages
ANALYSIS = {"thresholds": (6.0, 3.5)}


def contents(path):
    """Of a result file with the attributes of the run and with times of its ranks only."""
    with h5py.File(path) as file:
        assert {"n_ranks", "started", "finished", "config"} <= set(file.attrs)
        assert set(file["timing"]["rank"]) <= set(range(int(file.attrs["n_ranks"])))
    return helpers.contents(path, but=OF_THE_RUN)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """result(model, ranks, **engine): contents of the file of a run with all activations; each is run once."""
    finished = {}

    def run(model, ranks=None, **engine):
        key = (model, ranks, tuple(sorted(engine.items())))
        if key not in finished:
            folder = tmp_path_factory.mktemp("run")
            name, precision = model
            checkpoint = helpers.REFERENCES / name
            sections = helpers.run_sections(
                checkpoint,
                checkpoint / "tokens.h5",
                folder / "r.h5",
                precision,
                "all",
                engine=engine,
                analysis=ANALYSIS,
            )
            config = helpers.write_config(folder / "r.cfg", sections)
            helpers.run(["run", config], ranks, env=helpers.quick(ranks))
            with h5py.File(folder / "r.h5") as file:
                assert file.attrs["n_ranks"] == (ranks or 1)
            finished[key] = contents(folder / "r.h5")
        return finished[key]

    return run


@pytest.fixture(params=MODELS, ids="-".join)
def model(request):
    return request.param


@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
@pytest.mark.parametrize("ranks", (1, 2, 3, 4))
def test_ranks(result, model, ranks, micro_batch):
    helpers.assert_same(result(model, ranks, micro_batch=micro_batch), result(model, micro_batch=micro_batch))


@pytest.mark.parametrize("ranks", (None, 1, 2, 3, 4))
def test_ranks_with_guarded_buffers(result, model, ranks):
    helpers.assert_same(result(model, ranks, device="check"), result(model))


def test_micro_batches_with_guarded_buffers(result):
    model = MODELS[0]
    helpers.assert_same(result(model, 3, device="check", micro_batch=1), result(model, micro_batch=1))


@pytest.mark.parametrize("ranks", (None, 2))
def test_threads(result, model, ranks):
    helpers.assert_same(result(model, ranks, threads=2), result(model, None, threads=1))


@pytest.mark.parametrize("readers", (1, 7))
def test_readers(result, readers):
    helpers.assert_same(result(MODELS[0], 2, readers=readers), result(MODELS[0]))


def test_surplus_ranks(result, model):
    helpers.assert_same(result(model, SURPLUS), result(model))


@pytest.mark.parametrize("partition", ("contiguous", "interleaved"))
@pytest.mark.parametrize("ranks", (2, 3))
def test_partition(result, model, ranks, partition):
    helpers.assert_same(result(model, ranks, partition=partition, micro_batch=1), result(model, micro_batch=1))


@pytest.fixture(scope="module")
def smallest_memory(tmp_path_factory):
    """smallest_memory(model, micro_batch, device): the smallest engine.device_memory_gb, from the error line, and how
    much more would hold all weights."""

    def find(model, micro_batch, device="cpu"):
        folder = tmp_path_factory.mktemp("smallest")
        checkpoint = helpers.REFERENCES / model[0]
        sections = helpers.run_sections(
            checkpoint,
            checkpoint / "tokens.h5",
            folder / "r.h5",
            model[1],
            "all",
            engine={"device": device, "device_memory_gb": 1e-9, "micro_batch": micro_batch},
            analysis=ANALYSIS,
        )
        config = helpers.write_config(folder / "r.cfg", sections)
        done = helpers.run(["run", config], check=False, env=helpers.quick())
        assert done.returncode == 2
        memory = float(re.search(r"the smallest that works is ([0-9.]+) GB", done.stderr)[1])
        plan = helpers.run(["plan", config, "--json", "-s", f"engine.device_memory_gb={memory}"])
        rank = json.loads(plan.stdout)["ranks"][0]
        assert rank["arena_bytes"] < rank["weight_bytes"]  # or else nothing would stream
        return memory, 1e-9 * (rank["weight_bytes"] - rank["arena_bytes"])

    return find


SMALL = (("auto", "cpu"), ("contiguous", "cpu"), ("interleaved", "cpu"), ("auto", "check"))


@pytest.mark.parametrize("partition, device", SMALL, ids="-".join)
@pytest.mark.parametrize("ranks", (None, 2, 4))
def test_smallest_memory(result, smallest_memory, model, ranks, partition, device):
    """The weights stream through an arena that holds one stage."""
    engine = {"partition": partition, "device": device, "device_memory_gb": smallest_memory(model, 1, device)[0]}
    helpers.assert_same(result(model, ranks, micro_batch=1, **engine), result(model, micro_batch=1))


@pytest.mark.parametrize("part", (0.1, 0.25, 0.5, 0.9))
def test_memory_between(result, smallest_memory, part):
    """Arenas that hold some stages but not all."""
    model = MODELS[1]
    memory, more = smallest_memory(model, 0)
    helpers.assert_same(result(model, 2, device_memory_gb=memory + part * more), result(model))


def test_memory_below_the_smallest(tmp_path, smallest_memory):
    model = MODELS[0]
    checkpoint = helpers.REFERENCES / model[0]
    memory = smallest_memory(model, 0)[0] - 2e-6
    sections = helpers.run_sections(
        checkpoint,
        checkpoint / "tokens.h5",
        tmp_path / "r.h5",
        model[1],
        "all",
        engine={"device_memory_gb": memory},
        analysis=ANALYSIS,
    )
    config = helpers.write_config(tmp_path / "r.cfg", sections)
    done = helpers.run(["run", config], check=False, env=helpers.quick())
    assert done.returncode == 2 and "too small" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.cfg"]
