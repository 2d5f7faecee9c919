"""Twenty-two planted defects, twenty-two findings, each with its code and verdict."""

import json
import shutil

import numpy as np
from PIL import Image

from shards.build.build import build
from shards.format.index import SampleIndex
from tests.shards import raw_ade20k
from tests.shards import raw_maps as label_maps
from tests.shards.raw import edit, sky, write

VERDICTS = {
    "repaired": {19, 21},
    "kept": {4, 5, 6, 12, 15, 16, 18},
    "rejected": {1, 2, 3, 7, 8, 9, 10, 11, 13, 14, 17, 20, 22},
}
OF_LABEL_MAPS = {14, 21}
CODES = sorted({*range(1, 23)} - OF_LABEL_MAPS)


def picture(path, change=lambda picture: picture, *kind, **options):
    with Image.open(path) as found:
        found.load()
    change(found).save(path, *kind, **options)


def paint_unknown_id(picture):
    picture.putpixel((0, 0), (9, 9, 9))
    return picture


def plant(raw):
    """Plant in each image of `raw` the defect that names it; the last image stays sound."""
    photo = {code: raw / f"val2017/{code:02}.jpg" for code in CODES}
    truth = {code: raw / f"annotations/panoptic_val2017/{code:02}.png" for code in CODES}
    index = {code: i for i, code in enumerate(CODES)}
    exif = Image.Exif()
    exif[0x0112] = 3
    photo[1].write_text("no image")
    photo[2].write_bytes(photo[2].read_bytes()[:-40])
    picture(photo[3], lambda picture: picture.resize((5, 5)))
    picture(photo[4], exif=exif)
    picture(photo[5], lambda picture: picture.convert("L"))
    picture(photo[6], lambda picture: picture, "PNG")
    photo[7].unlink()
    truth[8].unlink()
    picture(truth[9], lambda picture: picture.resize((5, 5), Image.Resampling.NEAREST))
    picture(truth[10], paint_unknown_id)
    write(raw, [sky("t.jpg")], split="train")
    shutil.copy(photo[18], raw / "train2017/t.jpg")

    def in_panoptic(document):
        segments = document["annotations"][index[11]]["segments_info"]
        segments.append(segments[0] | {"id": 9})

    def in_instances(document):
        images, found = document["images"], document["annotations"]
        found[index[12]]["area"] = 700
        found[index[13]]["category_id"] = 55
        found[index[15]]["segmentation"] = []
        found[index[19]] |= {"segmentation": [[1, 1, 8, 1, 8, 5, 1, 5], [1, 1, 3, 3]], "area": 28}
        found[index[20]]["segmentation"]["counts"] = [5, 5]
        found[index[22]]["bbox"] = [0, 0, 1]
        found.append(found[index[16]])
        images.append(images[index[17]] | {"width": 9})

    edit(raw / "annotations/panoptic_val2017.json", in_panoptic)
    edit(raw / "annotations/instances_val2017.json", in_instances)


def plant_in_maps(raw):
    unknown_label, _ = raw_ade20k.maps(raw, "train", "14")
    labels = label_maps.pixels(unknown_label)
    labels[0, 0] = 254
    label_maps.save(unknown_label, labels.astype(np.uint8))
    semantic, instance = raw_ade20k.maps(raw, "train", "21")
    labels, instances = label_maps.pixels(semantic), label_maps.pixels(instance)
    person, bed = 4, 8
    inside = instances[..., 0] == person
    assert inside.any()
    labels[inside] = bed
    label_maps.save(semantic, labels.astype(np.uint8))


def findings(out):
    rows = [json.loads(line) for path in out.rglob("findings.jsonl") for line in path.open()]
    return sorted((row["file"], row["code"], row["verdict"]) for row in rows)


def images():
    made = [sky(f"{code:02}.jpg") for code in CODES] + [sky("sound.jpg")]
    for image in made:
        image.masks.append((3, np.eye(24, 32, dtype=bool), 0))
    return made


def test_22_defects_give_22_findings_and_sound_sets_none(tmp_path):
    def make(name):
        raw = write(tmp_path / name / "coco", images())
        for number, split in enumerate(("14", "21", "sound")):
            raw_ade20k.write(tmp_path / name / "ade20k", "train", split, number)
        return raw, tmp_path / name / "ade20k"

    def built(name):
        for source in ("coco", "ade20k"):
            out = tmp_path / name / "out" / source
            build(source, tmp_path / name / source, out, jobs=1, report=lambda _: None)
        return findings(tmp_path / name / "out")

    make("sound")
    assert built("sound") == []
    coco, ade20k = make("planted")
    plant(coco)
    plant_in_maps(ade20k)
    names = {
        code: f"{code}.jpg" if code in OF_LABEL_MAPS else f"{code:02}.jpg" for code in range(23)
    }
    expected = [(names[code], code, verdict) for verdict, of in VERDICTS.items() for code in of]
    assert len(expected) == 22
    assert built("planted") == sorted(expected)
    kept = {
        key
        for split in ("coco/val", "ade20k/train")
        for key in SampleIndex.load(tmp_path / "planted/out" / split).key
    }
    assert kept == {names[code][:2] for code in VERDICTS["repaired"] | VERDICTS["kept"]} | {"sound"}
