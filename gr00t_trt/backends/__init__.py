"""One target -> something to call: the five backends, from eager PyTorch to TensorRT. They know no GR00T.

A backend is a class here, see `base.Backend`, and a row of `gr00t_trt.plans.backends`, which is where it is looked up.
"""
