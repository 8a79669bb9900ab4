"""Promotion: only on a current verdict about exactly these models, in one step, and on the record."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy import promote as promote_module
from deploy.moves import MoveRefused, playable
from deploy.promote import Promoted, Wish, main, promote
from deploy.promote_checks import read_verdict
from monitoring.compare import compare
from monitoring.compare_job import open_logs
from monitoring.evidence import Version
from monitoring.pairing import FIRST
from monitoring.report import write_report
from monitoring.split_report import as_json
from monitoring.split_verdict import decide as decide_split
from monitoring.verdict import decide
from service import VERSION
from service.errors import ContractError, NotReady, PackageError
from service.roles import RolesMoved, Seat, move_roles, read_history, read_roles
from service.settings import ROOT, Settings
from tests.deploy.promotions import (
    AT,
    command,
    copied,
    environment_of,
    killed_at_every_step,
    known,
    make_bento,
    make_registry,
    seat,
    seated,
    told_by,
    verdict_of,
    write_verdict,
)
from tests.monitoring.logs import campaign, contract
from tests.monitoring.splits import make_split


def silent(_: str) -> None:
    """Say nothing."""


def do(settings: Settings, **wish: Any) -> Promoted:
    """Promote in this process."""
    return promote(settings, known(), Wish(**wish), silent)


def test_the_shadow_becomes_primary_its_slot_falls_free_and_the_history_says_on_what_grounds(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    old, new = seat(settings, "primary"), seat(settings, "shadow")
    verdict = verdict_of(settings)
    write_verdict(settings, verdict)

    done = do(settings)

    roles, move = read_roles(settings.models_dir), read_history(settings.models_dir)[-1]
    assert (dict(roles.seats)["primary"], "shadow" in roles.seats, roles.revision) == (new, False, 4)
    assert (done.promoted, done.replaced, done.kind, done.verdict) == (new, old, "promote", verdict.digest)
    assert (move.kind, move.verdict, move.at, move.done) == ("promote", verdict.digest, AT, True)
    assert dict(move.before) == {"primary": old, "shadow": new}
    assert dict(move.after) == {"primary": new, "shadow": None}
    assert "@" in move.by
    assert (settings.models_dir / old.package / "manifest.json").exists()


def test_any_slot_is_promoted_on_its_own_verdict(tmp_path: Path) -> None:
    settings = seated(tmp_path, slot="shadow_2")
    write_verdict(settings, verdict_of(settings, "shadow_2"), "shadow_2")

    do(settings, slot="shadow_2")

    assert read_roles(settings.models_dir).seats["primary"].version == "3"
    assert set(read_roles(settings.models_dir).seats) == {"primary", "fallback"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hold": ({"decision": "hold"}, "the verdict is hold .*only promote promotes"),
    "reject": ({"decision": "reject"}, "the verdict is reject"),
    "another primary": ({"primary": Version("1", "f" * 64)}, r"judged version 1 \(ffffffffffff\) as primary: primary"),
    "another version": ({"shadow": Version("9", "f" * 64)}, r"judged version 9 \(ffffffffffff\) as shadow: shadow is"),
    "another contract": ({"contract": "d" * 64}, "judged on contract dddddddddddd: the definitions are"),
    "another service": ({"service_versions": ("0.0.9",)}, f"version 0.0.9: this tree's is {VERSION}"),
    "two services": ({"service_versions": ("0.0.9", VERSION)}, f"version 0.0.9, {VERSION}: this tree's is"),
    "expired": ({"expires_at": AT}, "valid until 2013-10-15 00:00: the clock says 2013-10-15 00:00"),
    "from the future": (
        {"decided_at": AT + timedelta(days=1)},
        "decided 2013-10-16 00:00, .*the clock says 2013-10-15",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_verdict_about_anything_else_is_refused_with_value_limit_and_fix(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings, **changes))

    with pytest.raises(MoveRefused, match=f"{message}.*Overrule with FORCE=1 REASON="):
        do(settings)

    assert read_roles(settings.models_dir).revision == 3


def test_offline_evidence_never_promotes(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings), offline=True)

    with pytest.raises(MoveRefused, match="the evidence is replayed: offline evidence never promotes"):
        do(settings)


def test_what_the_comparison_writes_is_read_as_it_was_decided(tmp_path: Path) -> None:
    paired = open_logs(campaign(600, days=8).write(tmp_path / "logs"), contract()).of(FIRST)
    evidence = compare(paired, contract())
    verdict = decide(evidence)

    found = read_verdict(write_report(verdict, evidence, tmp_path / "reports").data)

    assert (found.problem, found.verdict, found.offline) == ("", verdict, False)
    assert found.digest == found.named == verdict.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no verdict .*compare\.json; run `make compare`"),
        ("", r"holds no verdict \(JSONDecodeError"),
        ("[]", "holds no verdict"),
        ('{"verdict": null}', "holds no verdict"),
        ('{"verdict": {"decision": "promote"}}', "holds no verdict"),
    ],
)
def test_what_is_no_verdict_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    settings = seated(tmp_path)
    path = write_verdict(settings, verdict_of(settings))
    path.unlink()
    if content is not None:
        path.write_text(content)

    with pytest.raises(MoveRefused, match=message):
        do(settings)


def test_a_verdict_changed_after_it_was_written_is_refused(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    path = write_verdict(settings, verdict_of(settings, decision="hold"))
    path.write_text(path.read_text().replace('"decision": "hold"', '"decision": "promote"'))

    with pytest.raises(MoveRefused, match="it was changed after it was written; run `make compare`"):
        do(settings)


def test_a_verdict_without_its_digest_is_refused(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    path = write_verdict(settings, verdict_of(settings))
    path.write_text(json.dumps({"verdict": json.loads(path.read_text())["verdict"]}))

    with pytest.raises(MoveRefused, match="does not name its digest"):
        do(settings)


def test_a_verdict_promotes_once(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    verdict = verdict_of(settings)
    write_verdict(settings, verdict)
    old, new = seat(settings, "primary"), seat(settings, "shadow")
    do(settings)
    move_roles(settings.models_dir, 4, {"primary": old, "shadow": new}, "by hand")

    with pytest.raises(MoveRefused, match=f"verdict {verdict.digest[:12]} led to revision 4: a verdict promotes once"):
        do(settings)


def test_a_splits_verdict_promotes_under_the_same_rules_when_asked_for(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    verdict = verdict_of(settings)
    write_verdict(settings, verdict, name="split.json", kind="split")

    with pytest.raises(MoveRefused, match=r"there is no verdict .*compare\.json; run `make compare`"):
        do(settings)
    done = do(settings, split=True)

    assert (done.kind, done.verdict) == ("promote", verdict.digest)
    assert read_history(settings.models_dir)[-1].verdict == verdict.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision": "hold"}, "the verdict is hold"),
        ({"primary": Version("1", "f" * 64)}, r"as primary: primary is version 1 .*; run `make split-verdict`"),
        ({"expires_at": AT}, "the clock says 2013-10-15 00:00; run `make split-verdict`"),
    ],
)
def test_a_splits_verdict_about_anything_else_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings, **changes), name="split.json", kind="split")

    with pytest.raises(MoveRefused, match=message):
        do(settings, split=True)

    assert read_roles(settings.models_dir).revision == 3


def test_without_a_splits_verdict_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoveRefused, match=r"no verdict .*split\.json; run `make split-verdict`"):
        do(seated(tmp_path), split=True)


def test_what_the_splits_judge_writes_is_read_as_it_was_decided(tmp_path: Path) -> None:
    evidence = make_split(tmp_path, ((0.5, 2),), per_day=300).gathered()
    verdict = decide_split(evidence)
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**as_json(verdict, evidence), "digest": verdict.digest}))

    found = read_verdict(path)

    assert (found.problem, found.verdict, found.offline) == ("", verdict, False)
    assert found.digest == found.named == verdict.digest


def test_force_needs_a_reason_and_both_stay_in_the_history(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings, decision="hold"))

    with pytest.raises(MoveRefused, match="FORCE=1 needs REASON="):
        do(settings, force=True)
    done = do(settings, force=True, reason="the season ends")

    move = read_history(settings.models_dir)[-1]
    assert (move.kind, move.reason, move.verdict) == ("force", "the season ends (overruled: decision)", None)
    assert done.kind == "force"


def test_force_on_a_good_verdict_is_a_promotion_like_any_other(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))

    assert do(settings, force=True, reason="to be sure").kind == "promote"


@pytest.mark.parametrize("force", [False, True])
def test_a_package_that_is_not_what_was_judged_never_plays(force: bool, tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    model = settings.models_dir / seat(settings, "shadow").package / "model.txt"
    model.write_bytes(model.read_bytes().replace(b"Tree=1", b"Tree=9", 1))

    with pytest.raises(PackageError, match="SHA-256 differs"):
        do(settings, force=force, reason="hurry")
    shutil.rmtree(model.parent)
    with pytest.raises(PackageError, match=r"manifest\.json cannot be read"):
        do(settings, force=force, reason="hurry")

    assert read_roles(settings.models_dir).revision == 3


def test_a_model_whose_features_are_gone_never_plays(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    found = known()
    one = found["primary"]
    fewer = {**found, "primary": replace(one, fields=one.fields[1:])}

    with pytest.raises(ContractError, match=f"no longer have: {one.fields[0].name}"):
        promote(settings, fewer, Wish(force=True, reason="hurry"), silent)


def test_a_model_trained_under_a_stricter_contract_is_refused(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    found = known()
    view = replace(found["primary"].views[0], max_staleness=timedelta(days=30))
    looser = {**found, "primary": replace(found["primary"], views=(view, *found["primary"].views[1:]))}

    with pytest.raises(MoveRefused, match=r"no longer fit version 3 .*looser .*max_staleness"):
        promote(settings, looser, Wish(force=True, reason="hurry"), silent)


@pytest.mark.parametrize("slot", ["primary", "fallback"])
def test_only_a_shadow_is_promoted(slot: str, tmp_path: Path) -> None:
    with pytest.raises(MoveRefused, match=f"SHADOW={slot} is no shadow slot"):
        do(seated(tmp_path), slot=slot)


def test_a_slot_nobody_plays_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"nobody plays shadow_3 \(seated: fallback, primary, shadow\)"):
        do(seated(tmp_path), slot="shadow_3")


def test_the_same_model_twice_is_nothing_to_promote(tmp_path: Path) -> None:
    settings = seated(tmp_path)
    move_roles(settings.models_dir, 3, {"shadow": replace(seat(settings, "primary"), version="7")})

    with pytest.raises(MoveRefused, match="are the same model"):
        do(settings)


def test_who_moves_the_roles_while_somebody_checks_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    checked = playable

    def slowly(*args: Any) -> Any:
        move_roles(settings.models_dir, 3, {"shadow": Seat("9", "f" * 64, "packages/9")}, "meanwhile")
        return checked(*args)

    monkeypatch.setattr(promote_module, "playable", slowly)

    with pytest.raises(RolesMoved, match="revision 4, not 3"):
        do(settings)

    assert seat(settings, "primary").version == "1"


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_its_registry_nothing_is_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.aliases import RegistryFailed

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = seated(tmp_path, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    write_verdict(settings, verdict_of(settings))

    with pytest.raises(RegistryFailed, match=r"MLflow at http://127\.0\.0\.1:\d+ failed"):
        do(settings)

    assert read_roles(settings.models_dir).revision == 3


def test_the_command_says_what_it_checked_and_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = seated(tmp_path)
    write_verdict(settings, verdict_of(settings))
    monkeypatch.setattr(promote_module, "settings", lambda: settings)

    codes = [main([]), main([])]

    said = capsys.readouterr()
    line = json.loads(said.out.splitlines()[-1])
    assert codes == [0, 1]
    assert (line["promoted"], line["replaced"], line["kind"], line["aliases"]) == ("3", "1", "promote", "none")
    assert Path(line["watch"]).exists()
    assert "  ok     the verdict is promote" in said.out
    assert "promote: nobody plays shadow (seated: fallback, primary); run `make train` first" in said.err


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with verdict, registry and a Bento, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    settings = seated(folder)
    write_verdict(settings, verdict_of(settings))
    make_registry(settings)
    make_bento(folder / "bentoml", "b", settings.models_dir)
    return folder


BEFORE = {
    "roles": {"primary": "1", "fallback": "2", "shadow": "3"},
    "aliases": {"primary": "1", "fallback": "2", "shadow": "3"},
    "bento": "current",
    "last": (3, "train"),
}
AFTER = {
    "roles": {"primary": "3", "fallback": "2"},
    "aliases": {"primary": "3", "fallback": "2"},
    "bento": "outdated",
    "last": (4, "promote"),
}


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_everything_before_or_after_once_the_next_command_ran(
    template: Path, tmp_path: Path
) -> None:
    found = killed_at_every_step(template, tmp_path, "deploy.promote")

    assert [one for one in found if one not in (BEFORE, AFTER)] == []
    # Line, roles twice, label twice, two aliases, record twice: nothing that is written was left out.
    assert len(found) == 10
    assert found == [BEFORE] * found.count(BEFORE) + [AFTER] * found.count(AFTER)
    assert found.count(BEFORE) == 3


@pytest.mark.slow
def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(template: Path, tmp_path: Path) -> None:
    settings, bento = copied(template, tmp_path / "race")
    env = environment_of(settings)
    both = [
        subprocess.Popen(
            command("deploy.promote"), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    said = [process.communicate(timeout=200) for process in both]

    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], said
    loser = said[codes.index(1)][1]
    assert loser.startswith("promote: ")
    assert "Traceback" not in loser
    assert told_by(settings, bento) == AFTER
