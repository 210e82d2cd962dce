"""Every attack and its outcome: ``python tests/attacks/attack_table.py`` prints them."""

import tempfile
from pathlib import Path

from attack import outcome
from hostile_annotations import ANNOTATIONS
from hostile_archives import ARCHIVES
from hostile_photos import PHOTOS
from hostile_pictures import PICTURES
from hostile_text_towers import TEXT_TOWERS
from hostile_weights import WEIGHTS

ATTACKS = (*PICTURES, *ANNOTATIONS, *ARCHIVES, *TEXT_TOWERS, *WEIGHTS, *PHOTOS)

if __name__ == "__main__":
    print("| attack | outcome |\n|---|---|")
    for attack in ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {attack.name} | {outcome(attack, Path(folder))} |")
    print(f"\n{len(ATTACKS)} attacks")
