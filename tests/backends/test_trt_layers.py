"""Layers of the network that Torch-TensorRT builds from, and of the engine that comes out."""

from __future__ import annotations

import json
import types

from small_submodules import make_target

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.cpu_only import cpu_only
from gr00t_trt.backends.trt_layers import engine_layers, network_layers
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions


def test_they_are_those_of_the_network_as_it_goes_into_the_builder(rtx, monkeypatch):
    before_the_build = []
    with cpu_only():
        from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

        construct, run = TRTInterpreter._construct_trt_network_def, TRTInterpreter.run

        def count(self):
            construct(self)
            before_the_build.extend(self.ctx.net.get_layer(i).type.name for i in range(self.ctx.net.num_layers))

        monkeypatch.setattr(TRTInterpreter, "_construct_trt_network_def", count)
        target = make_target("encoder")
        built = get_backend("torch_tensorrt").build(target, BuildOptions(), BuildContext(None, lambda _: None))
        assert built.layers_before == len(before_the_build)
        assert "MATRIX_MULTIPLY" in before_the_build
        assert TRTInterpreter.run is run


def test_nothing_built_is_no_number(rtx):
    with cpu_only(), network_layers() as layers:
        pass
    assert layers == []


def runtime_module(information):
    return types.SimpleNamespace(get_layer_info=lambda: information)


def test_the_inspectors_layers_are_counted_over_all_engines():
    detailed = {"Layers": [{"Name": "a"}, {"Name": "b"}], "Bindings": ["x"]}
    names = {"Layers": ["a", "b", "c"], "Bindings": ["x"]}
    assert engine_layers([runtime_module(json.dumps(detailed)), runtime_module(json.dumps(names))]) == 5


def test_an_engine_that_does_not_tell_is_no_number():
    told = runtime_module('{"Layers": []}')
    for other in (runtime_module("not JSON"), runtime_module("{}"), runtime_module(None), object()):
        assert engine_layers([told, other]) is None
