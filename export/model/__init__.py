"""The reference model: Enhanced VV-CLIP, TDDF, MSSPMM, adapter (MODEL.md)."""
