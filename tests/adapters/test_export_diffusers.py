"""Folders that diffusers loads: its own classes where they can say it, and code that needs no pdlab where not."""

import ast
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdlab.adapters import export_diffusers as module
from pdlab.adapters.export_diffusers import export_diffusers
from pdlab.adapters.pipelines import from_diffusers
from pdlab.adapters.portable import FILES, portable
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import load, save
from tests.adapters.test_graph import UNET
from tests.command import refused
from tests.made import denoiser_of, pipeline, unet

diffusers = pytest.importorskip("diffusers")

README = Path(__file__).parents[2] / "README.md"
ALPHA_ZERO = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
SCHEDULES = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},  # alpha² ends at 2e-9: less than a float32 beta can say
    "zero": ALPHA_ZERO,
    "short": {"num_train_timesteps": 7, "beta_end": 0.5},
}


@pytest.fixture(autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers puts the code of others before it runs it."""
    place = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", place)
    monkeypatch.setattr(sys, "path", [*sys.path])


def pipeline_of(place: Path, predicts: str = "v_prediction", classes: int | None = None, **schedule: Any) -> Path:
    """A small pipeline with attention."""
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return pipeline(place, unet(**blocks, num_class_embeds=classes), prediction_type=predicts, **schedule)


def noise(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def ours(denoiser: Denoiser, n: int, steps: int, **how: Any) -> Tensor:
    assert denoiser.shape is not None
    return sample(denoiser.eval().around(denoiser.network), noise(n, denoiser.shape), steps, **how)


def drawn(folder: Path, n: int, kind: Any = diffusers.DiffusionPipeline, trust: bool = True, **how: Any) -> Tensor:
    """What diffusers draws from the noise of `ours`, in [−1, 1]."""
    made = kind.from_pretrained(folder, **({"trust_remote_code": True} if trust else {}))
    made.set_progress_bar_config(disable=True)
    how = {"batch_size": n, "generator": torch.Generator().manual_seed(5), "output_type": "pt"} | how
    return 2 * made(**how).images - 1


@pytest.mark.parametrize("steps", [1, 4, 6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_student_of_a_pipeline_is_a_pipeline_of_stock_classes(name: str, steps: int, tmp_path: Path) -> None:
    denoiser = from_diffusers(pipeline_of(tmp_path / "teacher", **SCHEDULES[name]))
    assert export_diffusers(denoiser, tmp_path / "out", steps) <= 1e-5
    how = {"num_inference_steps": steps, "use_clipped_model_output": True}
    found = drawn(tmp_path / "out", 5, diffusers.DDIMPipeline, trust=False, **how)
    assert (found - ours(denoiser, 5, steps)).abs().max() < 1e-5
    assert not list((tmp_path / "out").rglob("*.py"))
    made = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert [type(part) for part in (made, made.unet)] == [diffusers.DDIMPipeline, diffusers.UNet2DModel]


def test_a_clipped_pipeline_differs_where_it_is_not_told_so(tmp_path: Path) -> None:
    """Else the test above would say nothing of clipping; and a call without the step count fails loudly."""
    denoiser = from_diffusers(pipeline_of(tmp_path / "teacher", "sample"))
    with torch.no_grad():
        denoiser.network.network.unet.conv_out.weight.mul_(4)  # type: ignore[union-attr]
    export_diffusers(denoiser, tmp_path / "out", 4)
    told = {"num_inference_steps": 4, "use_clipped_model_output": True}
    assert (drawn(tmp_path / "out", 5, trust=False, **told) - ours(denoiser, 5, 4)).abs().max() < 1e-5
    told["use_clipped_model_output"] = False
    assert (drawn(tmp_path / "out", 5, trust=False, **told) - ours(denoiser, 5, 4)).abs().max() > 1e-2
    with pytest.raises(ValueError, match="cannot be larger"):
        drawn(tmp_path / "out", 5, trust=False)


@pytest.mark.parametrize("null_class", [False, True])
def test_a_pipeline_with_classes_takes_labels(null_class: bool, tmp_path: Path, pdlab: Any) -> None:
    denoiser = from_diffusers(pipeline_of(tmp_path / "teacher", classes=4), null_class=null_class)
    denoiser.steps = 3
    save(tmp_path / "student", denoiser)
    out = tmp_path / "out"
    said = pdlab("export", "diffusers", tmp_path / "student", out)
    assert said.code == 0, said.err
    assert "3 steps, its images within" in said.out + said.err
    labels = torch.tensor([2, 0, 1])
    expected = ours(denoiser, 3, 3, labels=labels, guidance=0.5 * null_class)
    found = drawn(out, 3, class_labels=[2, "0", 1], guidance_scale=1.5 if null_class else 1.0)
    assert (found - expected).abs().max() < 1e-5
    if null_class:
        assert (drawn(out, 3) - ours(denoiser, 3, 3)).abs().max() < 1e-5
        assert (
            drawn(out, 3, class_labels="1") - ours(denoiser, 3, 3, labels=torch.ones(3).long())
        ).abs().max() < 1e-5
    else:
        with pytest.raises(ValueError, match="give class_labels: there are 0, 1, 2, 3"):
            drawn(out, 3)
        with pytest.raises(ValueError, match="no null class"):
            drawn(out, 3, class_labels=1, guidance_scale=2.0)
    with pytest.raises(ValueError, match="there is no class 4"):
        drawn(out, 3, class_labels=[4])
    assert [path.name for path in out.rglob("*.py")] == ["pipeline.py"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        drawn(out, 3, trust=False)
    loop = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        said = {}
        exec(compile(loop.replace("torch.randn(", "torch.ones("), "README", "exec"), said)
    finally:
        os.chdir(here)
    ends = torch.tensor([0, denoiser.num_classes - 1])
    assert (said["z"] - sample(denoiser, torch.ones(2, 3, 8, 8), 3, labels=ends)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "output", "schedule"),
    [
        (UNET, "x", CosineSchedule(-20, 7)),
        (UNetConfig(**{**vars(UNET), "guidance_max": 0.0, "null_class": True}), "both", CosineSchedule()),
        (UNetConfig(**{**vars(UNET), "guidance_max": 0.0, "num_classes": 0}), "v", CosineSchedule(-math.inf, 9)),
        (MLPConfig((1, 4, 6), width=8, blocks=1), "both", CosineSchedule(-math.inf, math.inf)),
    ],
)
def test_networks_of_ours_carry_their_code(
    config: Any, output: str, schedule: CosineSchedule, tmp_path: Path
) -> None:
    denoiser = denoiser_of(config, output, schedule=schedule, steps=2)
    out = tmp_path / "out"
    assert export_diffusers(denoiser, out, 3, "abc" * (denoiser.num_classes > 0)) <= 1e-5
    how: dict[str, Any] = {}
    told: dict[str, Any] = {}
    if denoiser.num_classes:
        how, told = {"class_labels": ["b", "a", "c"]}, {"labels": torch.tensor([1, 0, 2])}
    if denoiser.guidance_max or denoiser.null_class:
        how, told = how | {"guidance_scale": 2.25}, told | {"guidance": 1.25}
    assert (drawn(out, 3, **how) - ours(denoiser, 3, 3, **told)).abs().max() < 1e-5
    json.loads((out / "unet" / "config.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    if denoiser.guidance_max:
        with pytest.raises(ValueError, match=re.escape("must be in [1, 3], not 4")):
            drawn(out, 3, **how | {"guidance_scale": 4.0})


@pytest.mark.slow
def test_the_page_runs_where_there_is_no_pdlab(tmp_path: Path) -> None:
    """Its code as it stands, in half precision too."""
    export_diffusers(denoiser_of(UNET, "x", steps=2), tmp_path / "mine", 2, ["red", "green", "blue"])
    page = (tmp_path / "mine" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    half = "half = pipeline.to(torch.bfloat16)(class_labels='red', output_type='pt').images\n"
    check = "assert half.dtype == torch.bfloat16 and half.isfinite().all()\n"
    check += "assert pipeline.unet.__class__.__module__.startswith('diffusers_modules'), pipeline.unet.__class__\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    bare = f"import sys\nsys.modules['pdlab'] = None\n{code}{half}{check}"
    done = subprocess.run(
        [sys.executable, "-c", bare], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sample.png").exists()


def test_a_name_that_needs_escapes_still_makes_a_page_that_runs(tmp_path: Path) -> None:
    for name in ('say "x"', "\udcff"):
        export_diffusers(denoiser_of(UNET, "x", steps=2), tmp_path / name, 1, ['red "1"', "b", "c"])
        page = (tmp_path / name / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
        said = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert {name, 'red "1"', "c"} <= set(said)


@pytest.mark.parametrize("kind", FILES)
def test_the_code_that_is_carried_names_nothing_of_pdlab(kind: str) -> None:
    code = portable(kind)
    compile(code, "step_network.py", "exec")
    for word in ("schema", "pydantic", "from pdlab", "import pdlab"):
        assert word not in code, word
    assert f'@register_network("{kind}"' in code


def test_what_cannot_go_to_diffusers_is_said_in_a_line(
    tmp_path: Path, pdlab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = from_diffusers(pipeline_of(tmp_path / "teacher", "epsilon"))
    save(tmp_path / "eps", eps)
    out = tmp_path / "out"
    refused(pdlab("export", "diffusers", tmp_path / "eps", out), "no step count of its own")
    refused(pdlab("export", "diffusers", tmp_path / "eps", out, "--steps", 4), "an eps network", "distil it")
    refused(pdlab("export", "diffusers", tmp_path / "nothing", out), "there is no checkpoint")
    plane = denoiser_of(MLPConfig((2,), width=8, blocks=1), steps=2)
    with pytest.raises(PdlabError, match=r"mlp of \[2\] cannot go to diffusers.*export onnx"):
        export_diffusers(plane, out, 2)
    own = Denoiser(nn.Conv2d(1, 1, 1), "x", shape=(1, 4, 4))
    with pytest.raises(PdlabError, match=r"Conv2d of \[1, 4, 4\] cannot go"):
        export_diffusers(own, out, 2)
    fourier = from_diffusers(pipeline_of(tmp_path / "v"))
    fourier.network.network.unet.register_to_config(time_embedding_type="fourier")  # type: ignore[union-attr]
    with pytest.raises(PdlabError, match="fourier time embedding cannot be told the times of 3 steps"):
        export_diffusers(fourier, out, 3)
    save(tmp_path / "good", denoiser_of(UNET, "x", steps=2))
    for taken in (tmp_path, tmp_path / "eps" / "model.json"):
        refused(pdlab("export", "diffusers", tmp_path / "good", taken), "cannot write", "choose another DIR")
    refused(
        pdlab("export", "diffusers", tmp_path / "good", tmp_path / "eps" / "model.json" / "x"), "not a directory"
    )
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    refused(pdlab("export", "diffusers", tmp_path / "good", out), "draws other images", "nothing was written")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(pdlab("export", "diffusers", tmp_path / "good", out), "pip install 'pdlab[bench]'")
    assert not out.exists()
    assert not list(tmp_path.glob(".pdlab-tmp-*"))


@pytest.mark.slow
def test_the_readmes_way_from_diffusers_and_back(
    tmp_path: Path, pdlab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its six commands as they stand, but for the counts and for the installation."""
    text = README.read_text().split("### From diffusers and back")[1].split("\n##")[0]
    train, draw, commands = re.findall(r"```(?:python|bash)\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    installed, trained, distilled, sampled, exported, drew = commands.splitlines()
    assert (installed, trained, drew) == ("pip install -e '.[bench]'", "python train.py", "python draw.py")
    assert "pdlab" not in draw
    short = train.replace("epochs = 60", "epochs = 1").replace("batch_size=64", "batch_size=599")
    exec(compile(short, "train.py", "exec"), {})
    few = distilled.replace("updates=400", "updates=2").replace("updates 400", "updates 2")
    for command in (f"{few} --batch 4 --set guide.batch=4", sampled, exported):
        program, *words = command.split()
        assert program == "pdlab"
        assert pdlab(*words).code == 0
    found: dict[str, Any] = {}
    exec(compile(draw, "draw.py", "exec"), found)
    assert (tmp_path / "images.png").exists()
    pixels = torch.stack([torch.tensor(list(image.get_flattened_data())) for image in found["images"]])
    z = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = load(tmp_path / "runs" / "c" / "student-0004").denoiser
    assert (pixels - (sample(student, z).flatten(1) + 1) * 127.5).abs().max() < 0.502  # as bytes
