"""`predict`: segment images, and write pictures, JSON in COCO's formats, and a gallery."""
