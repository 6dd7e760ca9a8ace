"""An engine file is complete, described and unchanged, or it is not used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat

import pytest
import torch
from torch import nn

from gr00t_trt.engines import files as engine_files
from gr00t_trt.engines.files import engine_paths, prepare_engine_dir, verify, write_engine
from gr00t_trt.engines.key import weights_hash
from gr00t_trt.engines.manifest import Binding, Description, checksum, read_manifest
from gr00t_trt.errors import RecordError

PLAN = bytes(range(256)) * 40
DESCRIPTION = Description(
    inputs=(Binding("hidden", "float16", (1, 8, 32), (1, 20, 32), (4, 40, 32)),),
    outputs=(Binding("output0", "float16", (-1, -1, 32), (-1, -1, 32), (-1, -1, 32)),),
    compute_capabilities=("8.9", "12.0"),
    versions={"torch": "2.13.0", "tensorrt_rtx": "1.5.0.114"},
    options={"use_fp32_acc": True},
    settings={"min_block_size": 1},
    weights_sha256="ab" * 32,
    executed=False,
)


def write(folder, plan=PLAN):
    return write_engine(folder, "dit_model", plan, description=DESCRIPTION)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(engine_files, "_CHUNK_BYTES", 1000)


class TestWriting:
    def test_engine_and_manifest(self, tmp_path, small_chunks):
        file = write(tmp_path / "new" / "folder")
        assert file.path.read_bytes() == PLAN
        assert file.bytes == len(PLAN)
        assert sorted(p.name for p in file.path.parent.iterdir()) == ["dit_model.engine", "dit_model.manifest.json"]
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o644
        found = verify(file.path)
        assert found == read_manifest(file.manifest)
        assert found.sha256 == hashlib.sha256(PLAN).hexdigest()
        assert {name: getattr(found, name) for name in vars(DESCRIPTION)} == vars(DESCRIPTION)
        assert (found.schema, found.submodule) == (1, "dit_model")
        assert found.created.endswith("+00:00")

    def test_from_a_memoryview(self, tmp_path):
        assert verify(write(tmp_path, memoryview(PLAN)).path).bytes == len(PLAN)

    def test_a_second_build_replaces_the_first(self, tmp_path):
        write(tmp_path)
        assert verify(write(tmp_path, b"other").path).bytes == 5

    @pytest.mark.parametrize("where", ["write", "fsync", "replace"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
    def test_nothing_half_written_stays(self, tmp_path, monkeypatch, small_chunks, where, error):
        real, calls = getattr(os, where), []

        def fail(*args):
            calls.append(args)
            if where != "write" or len(calls) > 3:
                raise error
            return real(*args)

        monkeypatch.setattr(engine_files.os, where, fail)
        expected = RecordError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            write(tmp_path)
        assert list(tmp_path.iterdir()) == []
        if expected is RecordError:
            assert "dit_model.engine: cannot be written: no space left on the device" in str(caught.value)
            assert "--engine_dir" in str(caught.value)

    def test_an_interrupted_second_build_leaves_no_manifest_for_the_wrong_engine(self, tmp_path, monkeypatch):
        file = write(tmp_path)
        real = engine_files._write_whole

        def stop_before_the_manifest(path, data):
            if path.suffix == ".json":
                raise KeyboardInterrupt
            real(path, data)

        monkeypatch.setattr(engine_files, "_write_whole", stop_before_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, b"other")
        with pytest.raises(RecordError, match="no manifest, so its engine is not used"):
            verify(file.path)


class TestFolder:
    def test_is_made(self, tmp_path):
        assert prepare_engine_dir(tmp_path / "a" / "b").is_dir()
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(RecordError, match="a file stands where the folder should be"):
                prepare_engine_dir(path)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
    def test_is_read_only(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(RecordError, match="cannot be written: Permission denied"):
            prepare_engine_dir(tmp_path)
        tmp_path.chmod(0o700)

    def test_cannot_be_written(self, tmp_path, monkeypatch):
        def refuse(**kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(engine_files.tempfile, "NamedTemporaryFile", refuse)
        with pytest.raises(RecordError, match=r"cannot be written: Permission denied\n.*make the folder writable"):
            prepare_engine_dir(tmp_path)


class TestVerify:
    @pytest.fixture
    def engine(self, tmp_path):
        return write(tmp_path).path

    def test_truncated(self, engine):
        engine.write_bytes(PLAN[:-1])
        with pytest.raises(RecordError, match=f"{len(PLAN) - 1} bytes where {len(PLAN)} were written"):
            verify(engine)

    def test_altered(self, engine, small_chunks):
        engine.write_bytes(PLAN[:5000] + b"!" + PLAN[5001:])
        with pytest.raises(RecordError, match="its bytes differ"):
            verify(engine)

    def test_missing(self, engine):
        engine.unlink()
        with pytest.raises(RecordError, match="cannot be read"):
            verify(engine)

    def test_without_manifest(self, engine):
        engine_paths(engine.parent, "dit_model")[1].unlink()
        with pytest.raises(RecordError, match="no manifest"):
            verify(engine)

    def test_with_the_manifest_of_another(self, engine):
        other = engine.with_name("language_model.engine")
        other.write_bytes(PLAN)
        shutil.copyfile(*(engine_paths(engine.parent, stem)[1] for stem in ("dit_model", "language_model")))
        with pytest.raises(RecordError, match=r"its manifest describes dit_model\.engine"):
            verify(other)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not a readable manifest"),
            ("[]", "not a readable manifest"),
            ('{"schema": 2}', "manifest of schema 2"),
            ('{"schema": 1}', "the manifest has no checksum"),
            (f'{{"schema": 1, "checksum": "{checksum({"schema": 1})}"}}', "manifest fields are missing"),
        ],
    )
    def test_malformed_manifest(self, engine, text, message):
        engine_paths(engine.parent, "dit_model")[1].write_text(text)
        with pytest.raises(RecordError, match=message):
            verify(engine)

    def test_unknown_manifest_field(self, engine):
        path = engine_paths(engine.parent, "dit_model")[1]
        fields = json.loads(path.read_text())
        del fields["checksum"]
        fields["later"] = 1
        path.write_text(json.dumps({**fields, "checksum": checksum(fields)}))
        with pytest.raises(RecordError, match="later"):
            verify(engine)

    def test_manifest_without_its_checksum(self, engine):
        path = engine_paths(engine.parent, "dit_model")[1]
        fields = json.loads(path.read_text())
        del fields["checksum"]
        path.write_text(json.dumps(fields))
        with pytest.raises(RecordError, match="the manifest has no checksum"):
            verify(engine)

    def test_altered_manifest(self, engine):
        path = engine_paths(engine.parent, "dit_model")[1]
        path.write_text(path.read_text().replace('"hidden"', '"hiddem"'))
        with pytest.raises(RecordError, match="the manifest is not as it was written"):
            verify(engine)


class TestWeightsHash:
    def test_depends_on_values_names_shapes_and_dtypes(self):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        first = weights_hash(module)
        assert first == weights_hash(module)
        hashes = {first, weights_hash(nn.Sequential(module[1], module[0])), weights_hash(module.half())}
        with torch.no_grad():
            module[0].weight[2, 3] += 1
        hashes.add(weights_hash(module))
        assert len(hashes) == 4

    def test_takes_every_dtype_and_layout(self):
        module = nn.Module()
        module.register_buffer("bf16", torch.ones(2, 3, dtype=torch.bfloat16).t())
        module.register_buffer("scalar", torch.tensor(3))
        module.register_buffer("flag", torch.tensor([True, False]))
        module.register_buffer("empty", torch.zeros(0, 4))
        same = nn.Module()
        for name, value in module.named_buffers():
            same.register_buffer(name, value.contiguous().clone())
        assert weights_hash(module) == weights_hash(same)
