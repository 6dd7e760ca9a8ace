from __future__ import annotations

import io

import av
import numpy as np
import pytest

from gr00t_trt.common.video_file import decode_image
from gr00t_trt.data.video import EpisodeVideo, VideoReader
from gr00t_trt.errors import DatasetError

RATE = 30


def film(path, frames: int, b_frames: int) -> None:
    """Frame i is grey, 20 + 6 i bright; every tenth is a key frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "10", "g": "10", "bf": str(b_frames)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            image = np.full((48, 64, 3), 20 + 6 * i, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


def cut(source, target, first: int, last: int) -> None:
    """Copy frames `first` to `last` without re-encoding; the ones before that they need come along, before time 0."""
    with av.open(str(source)) as read, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = read.streams.video[0]
        copy = out.add_stream_from_template(stream)
        unit = round(1 / (RATE * stream.time_base))
        for packet in read.demux(stream):
            if packet.pts is not None and first - first % 10 <= packet.pts // unit <= last:
                packet.pts, packet.dts = packet.pts - first * unit, packet.dts - first * unit
                packet.stream = copy
                out.mux(packet)


def numbers(frames) -> list[int]:
    return [round((float(frame.mean()) - 20) / 6) for frame in frames]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("first", [10, 13, 19])
def test_frames_before_time_0_are_no_part_of_a_video(tmp_path, b_frames, first):
    film(tmp_path / "long.mp4", 36, b_frames)
    cut(tmp_path / "long.mp4", tmp_path / "cut.mp4", first, 24)
    reader = VideoReader(tmp_path / "cut.mp4")
    expected = list(range(first, 25))
    assert numbers(reader.frames(range(len(reader)))) == expected
    assert reader.starts_s[0] == 0
    assert reader.end_s == pytest.approx(len(expected) / RATE)
    for index in (5, 0, 4, 1):
        assert numbers(VideoReader(tmp_path / "cut.mp4").frames([index, 0])) == [first + index, first]


def test_an_episode_is_a_span_of_a_file(tmp_path):
    film(tmp_path / "a.mp4", 36, 2)
    reader = VideoReader(tmp_path / "a.mp4")
    for begin, end in ((0, 8), (8, 21), (21, 36)):
        # Ends that were added up from rounded durations.
        episode = EpisodeVideo(reader, begin / RATE + 2e-3, end / RATE - 2e-3)
        assert numbers(episode.frames(np.arange(end - begin))) == list(range(begin, end))
        np.testing.assert_allclose(episode.starts_s, np.arange(end - begin) / RATE - 2e-3, atol=1e-6)
        assert episode.end_s == pytest.approx((end - begin) / RATE - 2e-3)
    with pytest.raises(DatasetError, match=r"a\.mp4: no frame between 2\.0 s and 3\.0 s[\s\S]*to 1\.200000 s"):
        EpisodeVideo(reader, 2.0, 3.0)


def encoded(codec: str, kind: str, image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as out:
        stream = out.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], kind
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def test_images(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encoded("png", "rgb24", image), "image", 48 * 64), image)
    grey = np.full((48, 64, 3), 100, np.uint8)
    assert abs(decode_image(encoded("mjpeg", "yuvj420p", grey), "image", 48 * 64).astype(int) - 100).max() <= 2
    for data, most, words in (
        (b"GIF89a", 3072, r"row 3: neither a PNG nor a JPEG image: it begins with b'GIF89a'"),
        (encoded("png", "rgb24", image)[:500], 3072, "row 3: the image cannot be decoded"),
        (encoded("png", "rgb24", image), 3071, r"row 3: the image cannot be decoded[\s\S]*3071 pixels"),
    ):
        with pytest.raises(DatasetError, match=words):
            decode_image(data, "row 3", most)
