"""The six backends, from eager PyTorch to TensorRT: each builds a callable for one compile target of any model.

A backend is a class here, see `base.Backend`, and a row of `gr00t_trt.plans.backends`, which is where it is looked up.
"""
