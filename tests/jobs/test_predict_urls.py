"""Images at URLs: of a web server that misbehaves, and of an S3 server."""

import json

import numpy as np
import pytest

from jobs.predict import urls
from jobs.predict.inputs import find_images
from shards.errors import DataError, UsageError
from tests.jobs import small
from tests.jobs.test_predict_files import PHOTO, png
from tests.pipeline.servers import IMPATIENT, s3, serving

SECRET = "q.png?signature=secret"
BAD = {
    "missing.jpg": "the server has no such file",
    "empty.jpg": "the file is empty",
    "text.png": "the image has no readable header",
    "large.jpg": "the file is larger than 0 MiB",
    "refused.jpg?signature=secret": "cannot be downloaded: 5 tries failed",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(urls, "POLICY", IMPATIENT)
    monkeypatch.setattr(urls, "MAX_BYTES", len(PHOTO))
    folder = tmp_path / "web"
    (folder / "sub").mkdir(parents=True)
    files = {"sub/a%20b.jpg": PHOTO, SECRET: png(20, 30, 3), "empty.jpg": b"", "text.png": b"text"}
    files |= {"large.jpg": PHOTO + b"\0", "refused.jpg?signature=secret": PHOTO}
    for name, content in files.items():
        (folder / name.replace("%20", " ")).write_bytes(content)
    with serving(folder) as server:
        server.faults["refused.jpg?signature=secret"] = "refuse"
        yield server


def test_images_at_urls_have_the_names_of_their_paths(server):
    images = find_images([f"{server.url}/sub/a%20b.jpg", f"{server.url}/{SECRET}"])
    assert images.names == {"sub/a%20b": "sub/a%20b.jpg", "q": "q.png"}
    assert images.sources["q"].read().shape == (20, 30, 3)
    assert images.sources["sub/a%20b"].read().any()
    with pytest.raises(UsageError, match="two URLs differ only in their query"):
        find_images([f"{server.url}/{SECRET}", f"{server.url}/q.png"])
    outside = find_images([f"{server.url}/../../x.jpg", f"{server.url}/y.jpg"])
    assert not any(".." in id for id in outside.sources)


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_an_image_at_a_url_is_said_without_its_query(server, name):
    (source,) = find_images([f"{server.url}/{name}"]).sources.values()
    with pytest.raises(DataError, match=BAD[name]) as caught:
        source.read()
    assert "secret" not in str(caught.value)


def test_predict_downloads_each_image_once(photographs, tmp_path, server):
    small.untrained(tmp_path, photographs)
    given = [f"{server.url}/{name}" for name in (SECRET, "sub/a%20b.jpg", "text.png")]
    command = ["predict", small.NAME, *given, "--out", "out"]
    assert small.call(tmp_path, *command).code == 3
    asked = server.asked[SECRET]
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 3
    assert "2 of 3 images are already done" in outcome.out
    assert server.asked[SECRET] == asked > 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["images"] == 2
    assert [row["file"] for row in summary["left_out"]] == ["text.png"]
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*.*") if p.is_file())
    assert b"secret" not in written


def test_a_folder_of_an_object_store_is_searched(monkeypatch):
    with s3(monkeypatch, "photos") as client:
        for name in ("trip/1.png", "trip/more/2.PNG", "trip/notes.txt"):
            client.put_object(Bucket="photos", Key=name, Body=png(20, 30, 3))
        images = find_images(["s3://photos/trip"])
        assert list(images.sources) == ["1", "more/2"]
        np.testing.assert_array_equal(images.sources["more/2"].read(), np.full((20, 30, 3), 99))
        with pytest.raises(UsageError, match="holds no image"):
            find_images(["s3://photos/nowhere"])
