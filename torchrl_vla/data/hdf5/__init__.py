"""Demonstrations in HDF5 files, as robomimic and LIBERO lay them out."""

from torchrl_vla.data.hdf5.hdf5_demonstrations import Hdf5Demonstrations

__all__ = ["Hdf5Demonstrations"]
