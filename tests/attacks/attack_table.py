"""Every attack and its outcome: ``python tests/attacks/attack_table.py`` prints them."""

import tempfile
from pathlib import Path

from attack import outcome
from hostile_annotations import ANNOTATIONS
from hostile_archives import ARCHIVES
from hostile_pictures import PICTURES

ATTACKS = (*PICTURES, *ANNOTATIONS, *ARCHIVES)

if __name__ == "__main__":
    print("| attack | outcome |\n|---|---|")
    for attack in ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {attack.name} | {outcome(attack, Path(folder))} |")
    print(f"\n{len(ATTACKS)} attacks")
