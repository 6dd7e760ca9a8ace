"""From a plan and a model to compiled submodules."""
