"""Encoders in ONNX Runtime: exporting a checkpoint to a folder, and encoding from it without torch or transformers."""
