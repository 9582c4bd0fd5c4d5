"""SMILES to graphs, with features of atoms and bonds that are common in the literature (Wu et al. 2018, arXiv:1703.00564, section 3.3)."""

from typing import Any

import numpy as np

from assay.errors import DataError, PluginError
from assay_plugins.datasets.graphs import Molecule

FORM = 1  # of the features; part of fingerprints
ELEMENTS = ("C", "N", "O", "S", "F", "P", "Cl", "Br", "I", "B", "Si")
DEGREES = (0, 1, 2, 3, 4, 5)
HYDROGENS = (0, 1, 2, 3, 4)
CHARGES = (-1, 0, 1)
HYBRIDISATIONS = ("SP", "SP2", "SP3")
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
BOND_FEATURES = len(BONDS) + 2


def graph_of(smiles: str, where: str) -> Molecule:
    """The molecule's heavy atoms and its bonds, each bond in both directions. Raises DataError, with `where`, for what is no SMILES.

    Atoms, float32: one-hot element, number of neighbours, hydrogens, charge and hybridisation, each with a place for all others; aromatic;
    in a ring. Bonds, float32: one-hot kind; conjugated; in a ring.
    """
    chem = _rdkit()
    molecule = chem.MolFromSmiles(smiles) if smiles else None
    if molecule is None or not molecule.GetNumAtoms():
        raise DataError(f"{where}: {smiles!r} is no molecule in SMILES; mend or remove the row")
    bonds = list(molecule.GetBonds())
    ends = np.asarray([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in bonds], np.int32).reshape(-1, 2)
    features = np.asarray([_bond(b) for b in bonds], np.float32).reshape(-1, BOND_FEATURES)
    return Molecule(
        features=np.asarray([_atom(a) for a in molecule.GetAtoms()], np.float32),
        senders=np.concatenate([ends[:, 0], ends[:, 1]]),
        receivers=np.concatenate([ends[:, 1], ends[:, 0]]),
        edge_features=np.concatenate([features, features]),
    )


def _atom(atom: Any) -> list[float]:
    return [
        *_one_hot(atom.GetSymbol(), ELEMENTS),
        *_one_hot(atom.GetDegree(), DEGREES),
        *_one_hot(atom.GetTotalNumHs(), HYDROGENS),
        *_one_hot(atom.GetFormalCharge(), CHARGES),
        *_one_hot(str(atom.GetHybridization()), HYBRIDISATIONS),
        float(atom.GetIsAromatic()),
        float(atom.IsInRing()),
    ]


def _bond(bond: Any) -> list[float]:
    kind = str(bond.GetBondType())
    return [*(float(kind == name) for name in BONDS), float(bond.GetIsConjugated()), float(bond.IsInRing())]


def _one_hot(value: Any, known: tuple[Any, ...]) -> list[float]:
    """1 at the place of `value`, the last place being for what is not known."""
    place = known.index(value) if value in known else len(known)
    return [float(i == place) for i in range(len(known) + 1)]


def _rdkit() -> Any:
    try:
        from rdkit import Chem, rdBase  # an optional package
    except ImportError as error:
        raise PluginError("dataset.molecules needs rdkit: pip install 'assay[graphs]'") from error
    rdBase.DisableLog("rdApp.error")  # what it would print is in the DataError
    return Chem
