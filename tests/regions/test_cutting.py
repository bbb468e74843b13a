"""Names of frames, and frames from folders; no video is decoded here."""

import re
import subprocess
import sys

import pytest

from dimvl.errors import UserError
from dimvl.regions import cutting
from dimvl.regions.cutting import LOG, Spacing, cut_videos, list_videos
from dimvl.regions.frames import frame_name, video_name, videos_of
from tests.regions.videos import number_of, write_frames

TWO = Spacing(2, None)
NUMBERED = [f"img_{number:03d}.png" for number in range(1, 9)]


def test_the_name_of_a_frame_gives_its_video_and_its_time_back():
    names = [frame_name(video, time) for video, time in (("a@2", 12.5), ("b", 100.25), ("b", 99), ("b", 0.0004))]
    assert names[:2] == ["a@2@00012.500", "b@00100.250"]
    assert videos_of([*names, "photo", "logo@2x", "@3"]) == {
        "a@2": (("a@2@00012.500",), (12.5,)),
        "b": (("b@00000.000", "b@00099.000", "b@00100.250"), (0, 99, 100.25)),
    }
    assert [video_name(name) for name in ("v.MP4", "v_a.b", ".mp4", "v.mkv.webm")] == ["v", "v_a.b", ".mp4", "v.mkv"]


def test_two_frames_at_one_time_are_one_sentence():
    with pytest.raises(UserError, match=r"frames 'v@1' and 'v@01\.0' of one video have the same time; remove one"):
        videos_of(["v@1", "v@2", "v@01.0"])


def test_times_are_the_middles_of_equal_parts_or_regular_from_the_start():
    assert Spacing(4, None).times(8) == [1, 3, 5, 7]
    assert Spacing(None, 2).times(1.6) == [0, 0.5, 1, 1.5] and Spacing(None, 1).times(0) == [0]
    assert Spacing(2, None).choose([0, 1, 2, 3]) == [1, 3] and Spacing(9, None).choose([0]) == [0]


def test_numbered_frames_are_taken_at_their_rate_and_named_ones_at_their_times(tmp_path):
    write_frames(tmp_path / "videos" / "clip", NUMBERED)
    write_frames(tmp_path / "videos" / "other", [f"x@{time}.png" for time in (3, 4, 5.5)])
    report = cut_videos([tmp_path / "videos"], tmp_path / "out", TWO, frame_rate=2.0)
    assert (report.done, report.frames) == (2, 4)
    found = {path.name: number_of(path) for path in (tmp_path / "out").glob("*.png")}
    wanted = {"clip@00001.000.png": 2, "clip@00003.000.png": 6, "other@00003.000.png": 0, "other@00005.500.png": 2}
    assert found == wanted
    assert cut_videos([tmp_path / "videos"], tmp_path / "out", TWO, 2.0).already == 2


@pytest.mark.parametrize(
    ("names", "rate", "says"),
    [
        (NUMBERED, None, "clip has numbered frames, such as 'img_001'; give their number per second as --frame-rate"),
        (["1.png", "b01.png"], 1.0, r"b01\.png has no number of its own; number the frames"),
        (["1.png", "title.png"], 1.0, r"title\.png has no number of its own"),
    ],
)
def test_frames_without_a_time_are_one_sentence(tmp_path, caplog, names, rate, says):
    folder = write_frames(tmp_path / "clip", names)
    assert cut_videos([folder], tmp_path / "out", TWO, rate).skipped == 1
    [line] = caplog.messages
    assert re.search(says, line)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOG]


def test_what_is_no_video_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"has no video \(\.mp4.*\) and no frames; check the path"):
        list_videos([empty])
    one, other = tmp_path / "a.mp4", empty / "a.mkv"
    one.touch()
    other.touch()
    with pytest.raises(UserError, match="would both be the video 'a'; rename one"):
        list_videos([one, other])
    with pytest.raises(UserError, match="--frame-rate is for folders of numbered frames"):
        monkeypatch.setattr(cutting, "find_spec", lambda name: True)
        cut_videos([one], tmp_path / "out", TWO, 1.0)
    monkeypatch.setattr(cutting, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package av; pip install 'dimvl\[video\]', or give folders of frames"
    ):
        cut_videos([one], tmp_path / "out", TWO)
    assert not (tmp_path / "out").exists()


def test_cutting_needs_no_torch():
    code = "import sys, dimvl.cli, dimvl.regions.cutting, dimvl.data.annotations; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
