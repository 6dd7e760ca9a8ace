"""The rewritings of `products.GpuProducts` by name. Never imports torch."""

REWRITINGS = ("linear_gelu", "long_linear", "fp8_linear", "grouped_attention")
