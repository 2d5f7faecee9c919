"""Pictures of samples, annotations, and predictions.

`render` paints segments and class names over an image, `sheet` puts an image, its annotation, and
a prediction side by side, and `replay` rebuilds the batches of a training step and draws them.

Decoded samples and predictions go in, `uint8 [H, W, 3]` arrays and image files come out. The step
and the data do not depend on this package.
"""
