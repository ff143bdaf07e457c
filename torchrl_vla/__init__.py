"""TorchRL-native components for Vision-Language-Action models.

The subpackages are the table of contents: ``schema``, ``tokenizers``,
``transforms``, ``data``, ``policies``, ``execution``, ``envs``, ``objectives``,
``evaluation``, ``recipes`` and ``testing``. Importing ``torchrl_vla`` itself
loads none of them.
"""

__version__ = "0.1.0"
