"""The Inception path against torch-fidelity's own API, with random weights: no download."""

import pickle
import zipfile

import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import FeatureStatistics, extractor, figure_name, frechet_distance, kernel_distance

pytest.importorskip("torchvision")
torch_fidelity = pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights that keep the activations at their scale."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "none.pth")
    net = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if name.endswith("conv.weight"):
            parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    torch.save(net.state_dict(), folder / "random.pth")
    return folder / "random.pth"


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def theirs(weights, one, two, **metrics):
    return torch_fidelity.calculate_metrics(
        input1=Images(one),
        input2=Images(two),
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        **metrics,
    )


def test_kernel_distance_equals_torch_fidelity(weights, photos):
    one, two = photos[:6], photos[6:12]
    inception = extractor("inception", weights)
    x, y = inception(one), inception(two)
    assert x.shape == (6, inception.dim) == (6, 2048)
    assert x.std() > 0.01
    expected = theirs(weights, one, two, kid=True, kid_subsets=5, kid_subset_size=4, rng_seed=7)
    value, spread = kernel_distance(x, y, subsets=5, subset_size=4, seed=7)
    # theirs is computed in float32
    assert value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert spread == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.slow  # theirs takes the eigenvalues of a general 2048 x 2048 matrix
def test_frechet_distance_equals_torch_fidelity(weights, photos):
    one, two = photos[:6], photos[6:12]
    inception = extractor("inception", weights)
    # so few images leave the covariance singular, which is refused as a measurement; here both must agree on it
    value = frechet_distance(
        FeatureStatistics.of(inception(one)), FeatureStatistics.of(inception(two)), allow_singular=True
    )
    expected = theirs(weights, one, two, fid=True)["frechet_inception_distance"]
    assert value == pytest.approx(expected, rel=1e-4)


def test_random_weights_never_make_a_fid(weights, monkeypatch):
    monkeypatch.setenv("PDLAB_INCEPTION", str(weights))
    inception = extractor("inception")
    assert figure_name("frechet", inception, 50_000, "train", 50_000) == f"FD-{inception.label}"
    assert inception.label.startswith("Inception2015-weights-")
    assert len(inception.describe()["weights"]) == 64


def test_weights_are_downloaded_by_checksum(weights, monkeypatch, tmp_path):
    monkeypatch.delenv("PDLAB_INCEPTION", raising=False)
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        "pdlab.metrics.features.download",
        lambda url, dest, *, sha256, most: asked.append((url, dest, sha256)) or weights,
    )
    extractor("inception")
    ((url, dest, sha256),) = asked
    assert url.startswith("https://")
    assert dest.is_relative_to(tmp_path)
    assert dest.name.endswith(f"{sha256[:8]}.pth")  # the publisher names the file by its checksum
    assert len(sha256) == 64


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_what_was_checked_is_what_is_used(weights, monkeypatch, tmp_path):
    """A file that is exchanged after the check is not opened again."""
    from pdlab.metrics import features

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pth"
    file.write_bytes(weights.read_bytes())
    read = features._load

    def exchange(path):
        found = read(path)
        file.write_bytes(pickle.dumps(Bomb()))
        return found

    monkeypatch.setattr(features, "_load", exchange)
    extractor("inception", file)
    assert not (tmp_path / "exploded").exists()


def test_weights_that_would_unpack_to_gigabytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(9):
            archive.writestr(f"w/data/{k}", bytes(64 << 20))
    with pytest.raises(PdlabError, match="would unpack to 603,979,776 bytes"):
        extractor("inception", tmp_path / "w.pth")


def test_bad_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PDLAB_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(PdlabError, match=r"absent\.pth"):
        extractor("inception")
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(PdlabError, match=r"foreign\.pth does not hold the weights of Inception"):
        extractor("inception", tmp_path / "foreign.pth")
