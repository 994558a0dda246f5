"""README.md, CONTRIBUTING.md and docs/: links lead somewhere, options exist, and numbers are those
that were measured."""

import json
import re
import statistics
from pathlib import Path

import pytest
from PIL import Image

from lab import pages, race
from lab.effects import effect, holm
from minseg import UNet
from minseg.run import options
from minseg.run.checkpoint import save_model
from minseg.synthetic import synthetic_slide

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "docs/training.md", "docs/measured.md", "docs/log.md",
         "docs/race.md", "docs/study.md", "docs/shifts.md", "docs/audit.md", "docs/interop.md",
         "docs/export.md", "docs/masks.md", "docs/formats.md"]
OTHER_PROGRAMS = set(
    "--budgets --changes --half --part --longer "  # lab.race, lab.small
    "--steps --costs --tiles "  # lab.study, lab.shifts
    "--version --quick --arms --name --seeds --results --figures --check --slides --runs "  # lab
    "--against --images --size --tricks --encoders --model --minutes --before "  # lab.bench, gpu
    "--array --nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint "  # SLURM, torchrun
    "--bigtiff --compression "  # vips, large_image_converter
    "--durations --write --mine".split())  # pytest


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_of_a_page_leads_somewhere(page):
    path = ROOT / page
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', path.read_text("utf-8"))
    assert links
    for link in (markdown or html for markdown, html in links):
        if link.startswith("https://"):
            continue  # no test goes out into the network
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M) if anchor else ()
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("page", PAGES)
def test_every_option_on_a_page_exists(page, capsys):
    known = set(OTHER_PROGRAMS)
    for parse in (options.train_options, options.infer_options):
        with pytest.raises(SystemExit):
            parse(["--help"])
        known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {"--resume", "--geojson"} < known
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", (ROOT / page).read_text("utf-8")):
        assert option in known, option


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_program_on_a_page_exists(page):
    text = (ROOT / page).read_text("utf-8")
    files = re.findall(r"(?<![\w/])(?:minseg|lab|tests|docs)/[\w/]+\.\w+", text)
    files += [f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m (lab\.\w+)", text)]
    files += re.findall(r"python (\w+\.py)", text)
    for file in files:
        assert "NAME" in file or (ROOT / file).exists(), file


# The README's commands


def test_the_readme_and_ci_run_the_same_test_command_and_each_line_is_complete():
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert [line.rpartition(" && ")[2] for line in lines] == ["python train.py", "python -m pytest"]
    for line in lines:
        assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && python -m pip ")
    assert lines[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_the_version_is_the_same_everywhere():
    stated = [re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)[1]
              for file, pattern in (("pyproject.toml", r'^version = "(.+)"$'),
                                    ("CITATION.cff", "^version: (.+)$"),
                                    ("CHANGELOG.md", "^## ([0-9.]+),"))]
    assert len(set(stated)) == 1, stated


def test_the_python_of_the_readme_segments_a_slide(small_networks, tmp_path):
    code, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    net = UNet("efficientnet-lite0", decoder_channels=(16, 16, 8, 8, 8))
    save_model(tmp_path / "model.pt", {"encoder": "efficientnet-lite0"}, net.state_dict(), scale=4,
               tile=32, threshold=0.5)
    image, _ = synthetic_slide(1, 200, 264)
    Image.fromarray(image).save(tmp_path / "slide.png")
    names = {}
    exec(code.replace("runs/synthetic/fold0/", f"{tmp_path}/").replace(
        "runs/synthetic-slides/images/slide16.png", f"{tmp_path}/slide.png"), names)
    assert names["mask"].shape == names["probability"].shape == (50, 66)
    assert 0 <= names["probability"].min() <= names["probability"].max() <= 1


# Skipped tests


def test_a_test_that_needs_an_extra_says_how_to_install_it():
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text("utf-8")
        for found in re.finditer(r"pytest\.importorskip", text):
            call = text[found.end() : found.end() + 200]
            assert "python -m pip" in call or "{INSTALL}" in call, (path, call)


# What the tricks brought

def test_the_tables_are_those_of_the_results():
    for page, tables in pages.pages(ROOT / "docs/results").items():
        text = (ROOT / page).read_text("utf-8")
        assert pages.filled(text, tables) == text, f"{page}: python -m lab.pages writes it anew"


WORDS = {  # of a paragraph, or the chapter's name: the arms whose effects it may quote
    "gate": ["gates", "gates, open at first"], "scse": ["SCSE"],
    "cbam": ["CBAM", "CBAM, open at first"], "hypercolumn": ["hypercolumn"],
    "supervision": ["deep supervision"], "dice": ["Dice", "BCE"], "imagenet": ["random weights"],
    "lovász": ["Lovász", "BCE + Lovász", "Dice, then Lovász",
               "BCE + Dice, then Lovász at a lower rate"], "lovasz": ["Lovász"],
    "sampling": ["all empty tiles"], "window": ["overlap 0, uniform", "overlap 0.5, uniform"],
    "views": ["eight views"], "tta": ["eight views"], "gaussian": ["overlap 0.5, gaussian"],
    "turn": ["tiles not turned"]}
NUMBER = r"[+-]\d\.\d{3}(?: \[[^]]*\])?|(?<![\d.+-])0\.\d{3}(?!\d)"


def measured(text, studies):
    """What a paragraph may quote, as it is written: effects of the arms that it names, with and
    without intervals; where it names the baseline, its Dice; and where it names noise, that."""
    said, text = set(), text.lower()
    named = [arm for word, arms in WORDS.items() if word in text for arm in arms]
    for study in studies.values():
        base = study["baseline"]
        groups = [dices for group, dices in base["groups"].items() if group in text]
        for dices in [base["along"], *groups] if "baseline" in text else []:
            said |= {f"{dice:.3f}" for dice in dices.values()}
        if "seed noise" in text:
            said.add(f"{max(row['luck'] for row in study['training']):.3f}")
        for row in (study["arms"][arm] for arm in named if arm in study["arms"]):
            rows = [row, *([row["per_image"]] if "image by image" in text else [])]
            rows += row.get("along", {}).values() if "steps" in text else []
            said |= {pages.signed(found["difference"]) for found in rows}
            said |= {pages.interval(found) for found in rows}
    return said


def prose():
    """The paragraphs that quote what was measured: each with what it may quote."""
    studies, tables = pages.load(ROOT / "docs/results"), pages.pages(ROOT / "docs/results")
    quotes = {page: {part for number in re.findall(NUMBER, "\n".join(tables[page]))
                     for part in (number, number.partition(" ")[0])}
              for page in ("docs/race.md", "docs/log.md")}
    paragraphs = re.split(r"\n\n|\n(?=- )", (ROOT / "docs/study.md").read_text("utf-8"))
    for chapter in (ROOT / "minseg").glob("*.py"):
        paragraphs += [f"{chapter.stem} {text}" for text in re.findall(
            r"\*\*Measured\.\*\* .*?(?=\n\n)", chapter.read_text("utf-8"), re.S)]
    for text in paragraphs:
        if not text.startswith(("|", "```")):
            text = re.sub("[▲▼↗↘] |In another experiment.*", "", " ".join(text.split()))
            yield text, measured(text, studies) | (quotes["docs/log.md"] if "log.md" in text
                                                   else set())
    # The prose of these two repeats numbers of their tables, but the log's last two sections quote
    # other runs: some have a test below, some left nothing but their command.
    for page, said in quotes.items():
        text = (ROOT / page).read_text("utf-8").partition("\n## Small data sets\n\nFive data")[0]
        yield " ".join(re.sub(r"(?m)^\|.*", "", text).split()), said


def unknown(text, said):
    """The numbers of a paragraph that were not measured."""
    return {number for number in re.findall(NUMBER, text) if number not in said}


def test_each_number_in_prose_was_measured():
    for text, said in prose():
        assert not unknown(text, said), text


def test_a_changed_digit_in_prose_is_noticed():
    changed = noticed = 0
    for text, said in prose():
        for found in re.finditer(NUMBER, text):
            for at in range(found.start(), found.end()):
                if text[at].isdigit():
                    other = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
                    changed, noticed = changed + 1, noticed + bool(unknown(other, said))
    assert changed > 200 and noticed > 0.85 * changed


ROW = {"difference": 0.0123, "low": -0.0004, "high": 0.02, "p_holm": 0.03, "luck": 0.01, "seeds": 2,
       "moved": {"difference": -0.02, "luck": 0.01}, "arm": "SCSE", "networks": 6,
       "found_nothing": 2,
       "objects": {"found": 1, "missed": 2.5, "invented": 3, "split": 0}}
WAY = {"arm": "eight views", "seeds": 2, "dice": 0.8, "difference": 0.05, "low": 0.01, "high": 0.09,
       "p_holm": 1.0}
MADE_UP = {
    "nuclei": {"arms": {"SCSE": ROW, "eight views": WAY}, "training": [ROW], "ways": [WAY],
               "steps": 600,
               "baseline": {"dice": 0.8126, "seeds": 5, "along": {"75": 0.7, "600": 0.8126}},
               "objects": {"eight views": ROW["objects"]},
               "seams": {way: {"wrong": [9] * 8 + [5] * 16, "pixels": [100] * 24}
                         for way in pages.SEAMS}},
    "synthetic": {"arms": {}, "training": [ROW], "steps": 600}}
FIRST = {"nuclei": MADE_UP["nuclei"]}


def test_two_groups_of_nuclei_fall_and_the_others_gain():
    groups = pages.load(ROOT / "docs/results")["nuclei"]["baseline"]["groups"]
    gains = {group: dices["600"] - dices["300"] for group, dices in groups.items()}
    assert {group for group, gain in gains.items() if gain < -0.01} == {"g5", "g6"}
    assert sum(0 < gain < 0.0065 for gain in gains.values()) == 8


def test_what_was_counted():
    """What docs/study.md says of networks that found nothing, and of objects."""
    found = pages.load(ROOT / "docs/results")["synthetic"]
    blind = found["arms"]["Dice, then Lovász"]
    assert (blind["found_nothing"], blind["networks"]) == (2, 6)
    without, overlap = (found["objects"][f"overlap {way}"] for way in ("0, uniform", "0.5, linear"))
    assert (without["invented"], overlap["invented"]) == (150, 59)
    assert without["found"] + without["missed"] == 67


def test_what_runs_of_1200_steps_say():
    """What docs/study.md says of them in words."""
    found = pages.load(ROOT / "docs/results")["synthetic-1200"]["arms"]
    for arm in ("BCE + Lovász", "Dice", "random weights"):
        assert not found[arm]["found_nothing"] and not pages.mark(found[arm])
        assert (found[arm]["low"] < 0) == (arm != "random weights") and found[arm]["high"] > 0
    assert found["Lovász"]["found_nothing"] == 1 and pages.moves(found["random weights"]) == " ↘"


def test_which_arrows_there_are():
    """What docs/study.md says of them."""
    found = pages.load(ROOT / "docs/results")
    arrows = {(name, row["arm"]): abs(row["moved"]["difference"]) / row["moved"]["luck"]
              for name in ("nuclei", "synthetic", "synthetic-1200")
              for row in found[name]["training"] if pages.moves(row)}
    assert arrows.keys() == {("synthetic", "Lovász"), ("synthetic", "BCE + Lovász"),
                             ("synthetic", "Dice"), ("synthetic-1200", "random weights")}
    assert all((excess < 1.1) == (name == "synthetic") for (name, _), excess in arrows.items())


def test_what_seems_to_help_on_the_nuclei_comes_from_one_group():
    """What docs/study.md says of g5."""
    from lab import study
    from lab.effects import dice_of_groups

    args = study.parse(["--data", "nuclei", "--name", "nuclei", "--scale", "2", "--tile", "64"])
    args.published, args.out = ROOT / "docs/results/study-nuclei.jsonl", Path("none")
    runs = study.complete(study.read_lines(args), args.folds)

    def dices(arm):
        seeds = [dice_of_groups([line["along"]["600"] for line in folds]) for folds in runs[arm]]
        return {group: statistics.mean(seed[group] for seed in seeds) for group in seeds[0]}

    base = dices("baseline")
    for arm in ("SCSE", "CBAM", "hypercolumn"):
        gains = {group: dice - base[group] for group, dice in dices(arm).items()}
        assert gains["g5"] > 0.5 * sum(gains.values()) > 0, arm
    random = {group: base[group] - dice for group, dice in dices("random weights").items()}
    assert sum(random.values()) < 0 < sum(random.values()) - random["g5"]


def test_a_page_without_its_table_is_refused():
    table = pages.markdown(["a", "b"], ["1", "2"])
    assert pages.filled("A.\n\n| a | old |\n|---|\n\nB.", [table]) == f"A.\n\n{table}\n\nB."
    with pytest.raises(ValueError, match="no table begins with 'a'"):
        pages.filled("A.\n\nB.", [table])


def test_tables_of_the_study():
    costs = {arm: {"seconds_a_step": seconds, "kept_bytes": 4, "parameters": 5_200_000}
             for arm, seconds in (("baseline", 2.0), ("SCSE", 3.0), ("BCE", 1.0),
                                 ("the same again", 2.1))}
    assert pages.effects(FIRST, costs).splitlines()[2:] == [
        "| the baseline | Dice 0.813, 5 seeds | 1.00 × | 1.00 × | 5.20 M |",
        "| luck alone | ±0.010 |  |  |  |",
        "| the same again |  | 1.05 × | 1.00 × | 5.20 M |",
        "| SCSE | +0.012 ▲ ↘ [+0.000, +0.020] p 0.03 | 1.50 × | 1.00 × | 5.20 M |",
        "| the baseline, for ways to predict | Dice 0.750, 2 seeds |  |  |  |",
        "| eight views | +0.050 [+0.010, +0.090] |  |  |  |"]
    turned = {"nuclei": {**FIRST["nuclei"], "arms": {"BCE": {**ROW, "arm": "Dice added to BCE"}}}}
    assert "p 0.03 | 2.00 × | 1.00 × | 5.20 M |" in pages.effects(turned, costs)
    assert pages.objects(FIRST).splitlines()[-2:] == [
        "| the baseline, eight views | 1 | 2.5 | 3 | 0 |",
        "| trained with: SCSE | 1 | 2.5 | 3 | 0 |"]
    assert pages.seams(FIRST).splitlines()[-1] == "| overlap 0.5, gaussian | 9.00 % | 5.00 % |"
    assert pages.along(FIRST).splitlines()[-1] == "| nuclei | 0.700 | 0.813 |"


def study_of(steps, dice, **arms):
    """A summary of runs of that many steps, for the table of schedules."""
    return {"steps": steps, "baseline": {"along": dice}, "arms": {
        arm: {"arm": arm, "along": {at: {"difference": found} for at, found in along.items()}}
        for arm, along in arms.items()}}


def test_the_table_of_schedules_sets_the_same_steps_of_runs_of_other_lengths_side_by_side():
    table = pages.schedules({
        "synthetic": study_of(600, {"150": 0.5, "600": 0.8}, SCSE={"150": 0.1, "600": 0.01}),
        "synthetic-150": study_of(150, {"150": 0.6}, SCSE={"150": 0.2})})
    assert table.splitlines()[0].split(" | ")[1:] == [
        "a run of 150 steps, at its end", "a run of 600 steps, after 150",
        "a run of 600 steps, at its end |"]
    assert table.splitlines()[2:] == ["| baseline | 0.600 | 0.500 | 0.800 |",
                                      "| SCSE | +0.200 | +0.100 | +0.010 |"]


def test_tables_of_shifts_leave_out_what_lies_near_a_border():
    found = {"as they are": [1.0] + [0.5] * 3 + [0.25, 0.0], "same means": [0.0] * 6,
             "pixels": [10, 10, 10, 10, 3, 1]}
    row = {"name": "net", "mismatch": {f"tile {tile}, shift {shift}": found for tile in (128, 999)
                                       for shift in (32, 16, 8, 4, 2, 1)},
           "left": {"a": 0.0123, "b": 1.2e-5}}
    moved = {"tiles": [128, 999], "reach": 40, "rows": [row]}
    far, shifted, blended = pages.shift_tables(moved)
    assert far.endswith("| net | 0 | 0 | 0 | 1 |")
    assert shifted.endswith("| net" + " | 0.19" * 6 + " |")
    assert pages.shift_tables({**moved, "reach": 32})[0].endswith("| net | 0.19 | 0 | 0 | 1 |")
    assert blended.splitlines() == ["| mean difference after blending | a | b |",
                                    "|---|---|---|", "| net | 0.012 | 1.2e-5 |"]


def test_the_page_says_of_tiles_what_was_measured():
    found = json.loads((ROOT / "docs/results/shifts.json").read_text("utf-8"))
    assert found["reach"] == 520 and found["tiles"] == [128, 1152]
    apart, alike, off = ({row["name"]: pages.inside(row, f"tile 1152, shift {shift}", means, 520)
                          for row in found["rows"]} for shift, means in
                         ((32, "as they are"), (32, "same means"), (16, "same means")))
    assert apart["Lite0"] == apart["hypercolumn"] == alike["B0"] == alike["SCSE"] == 0
    assert 0 < apart["gates"] < 1e-12 and 0 < alike["CBAM"] < 1e-10
    assert 2e-5 < apart["CBAM"] < apart["SCSE"] < 4e-5 and 0.0015 < apart["B0"] < 0.0025
    assert 1.5e-4 < off["Lite0"] < 2.5e-4 and 0.015 < off["B0"] < 0.025
    for row in found["rows"]:
        border = row["mismatch"]["tile 1152, shift 32"]["as they are"]
        assert 0.02 < border[0] < 0.05
        small = {shift: pages.inside(row, f"tile 128, shift {shift}", "as they are", 32)
                 for shift in (32, 16, 2, 1)}
        assert small[16] < 1.25 * small[32]
        assert all(small[shift] / small[32] > (2 if row["name"] == "B0" else 16)
                   for shift in (2, 1))
        assert row["name"] != "B0" or max(small[2], small[1]) < 4 * small[32]
        left = row["left"]
        assert 0.015 < left["overlap 0, uniform"] < 0.026
        assert left["overlap 0.5, uniform"] > 0.8 * left["overlap 0, uniform"]
        if row["name"] == "Lite0":
            assert 0.8e-4 < border[12] < 1.5e-4
            assert 8 < left["overlap 0, uniform"] / left["overlap 0.5, linear"] < 12
            assert 40 < left["overlap 0, uniform"] / left["overlap 0.5, gaussian"] < 60
        if row["name"] == "B0":
            assert all(0.25 < left[f"overlap 0.5, {window}"] / left["overlap 0, uniform"] < 0.4
                       for window in ("linear", "gaussian"))


def test_a_chapter_begins_with_a_line_of_the_tutorial():
    tutorial, quoting = (ROOT / "tutorial.py").read_text("utf-8"), 0
    for chapter in (ROOT / "minseg").glob("*.py"):
        text = chapter.read_text("utf-8")
        for line in re.findall(r"^\*\*In `tutorial.py`\*\*,\s`([^`]+)`", text, re.M):
            assert line in tutorial, chapter
            quoting += 1
    assert quoting >= 15


def test_the_table_of_the_readme_has_a_row_for_every_chapter():
    text = (ROOT / "README.md").read_text("utf-8")
    for file in (ROOT / "minseg").glob("[a-z]*.py"):
        assert file.stem in ("weights", "processes") or f"](minseg/{file.name})" in text, file


def test_the_verdicts_of_the_readme_follow_from_the_study():
    studies, judged = pages.load(ROOT / "docs/results"), set()
    word = {"attention_gate": "gate", "deep_supervision": "supervision", "pretrained": "imagenet",
            "losses": "lovász", "tiling": "window"}
    for verdict, chapter in re.findall(r"\| ([^|]+) \| \[(\w+)\]\(minseg/",
                                       (ROOT / "README.md").read_text("utf-8")):
        for arm in WORDS.get(word.get(chapter, chapter), ()):
            found = {name: study["arms"][arm] for name, study in studies.items()
                     if arm in study["arms"]}
            marks = {name: mark for name, row in found.items() if (mark := pages.mark(row))}
            assert (marks.get("patients") == " ▲") == (verdict == "clear"), arm
            alone = verdict.startswith("worse alone") and arm == "Dice"
            assert (marks.get("patients") == " ▼") == alone
            if verdict == "clear at first":
                assert marks == {"synthetic": " ▲"} and "synthetic-1200" in found
            elif verdict == "slow start":
                early = found["synthetic"]["along"].get("75")  # two stages have none
                assert early is None or early["difference"] < -0.2
            if verdict != "clear":
                assert not marks or verdict in ("clear at first", "slow start") or arm == "Dice"
            judged.add(verdict)
    assert len(judged) == 5


def test_the_readme_counts_the_audits_verdicts():
    rows = json.loads((ROOT / "docs/results/audit.json").read_text("utf-8"))["rows"]
    same = sum(row["verdict"] == "same" for row in rows)
    assert f"{same} of {len(rows)} comparisons agree" in " ".join(
        (ROOT / "README.md").read_text("utf-8").split())


def dice_by_contestant(lines, steps=None):
    """The fold of each group; the Dice of each group, by contestant and seed."""
    runs = race.read_lines(ROOT / f"docs/results/{lines}.jsonl")
    return race.complete({job: run for job, run in runs.items() if steps in (None, job[1])}, 3)


def test_chapters_quote_the_log():
    dice = {name: [seed.values() for seed in seeds] for name, seeds in
            dice_by_contestant("log-sparse")[1].items()}
    mean = {name: sum(values) / len(values) for name, [values] in dice.items()}
    for file, quote in (("dice", "end in a Dice of {Dice of each image:.3f}, and with Dice over "
                         "the batch in {minseg:.3f}"),
                        ("sampling", "gave a Dice of {minseg:.3f}, with all tiles "
                         "{all empty tiles:.3f}")):
        text = " ".join((ROOT / f"minseg/{file}.py").read_text("utf-8").split())
        assert quote.format(**mean) in text


def test_the_race_says_which_groups_carry_it():
    """What docs/race.md says in words."""
    page = " ".join((ROOT / "docs/race.md").read_text(encoding="utf-8").split())
    found = {name: json.loads((ROOT / f"docs/results/race-{name}.json").read_text("utf-8"))
             for name in ("nuclei", "synthetic")}
    assert f"(nuclei: {', '.join(found['nuclei']['tuned_on'])})" in page
    patients = [group.removeprefix("patient") for group in found["synthetic"]["tuned_on"]]
    assert f"(synthetic: patients {', '.join(patients)})" in page
    ours = {(name, row["steps"]): row for name in found for row in found[name]["rows"]
            if row["contestant"] == "minseg"}
    kinds = ("same_steps", "same_time", "not_tuned")
    clear = {kind: {key for key, row in ours.items() if row[kind]["low"] > 0} for kind in kinds}
    firm = {kind: {key for key, p in zip(ours, holm([row[kind]["p"] for row in ours.values()]))
                   if p <= 0.05} for kind in kinds}
    slides = {("synthetic", 75), ("synthetic", 150)}
    assert clear == {"same_steps": {("synthetic", 150)}, "not_tuned": {("synthetic", 75)},
                     "same_time": {*slides, ("nuclei", 75), ("nuclei", 150)}}
    assert firm == {**clear, "same_time": slides}
    assert all(row["same_steps"]["difference"] > 0 for row in ours.values())
    each = [{group: statistics.mean(seeds) for group, seeds in row["same_steps"]["groups"].items()}
            for (name, _), row in ours.items() if name == "nuclei"]
    without = [statistics.mean(d for group, d in groups.items() if group != "g6")
               for groups in each]
    assert all(mean < 0.01 < 0.04 < groups["g6"] for mean, groups in zip(without, each))
    images = [row["per_image"]["difference"] for (name, _), row in ours.items() if name == "nuclei"]
    assert "all ten groups have {:+.3f}, {:+.3f} and {:+.3f}".format(*images) in page
    others = found["nuclei"]["fold_of"].keys() - found["nuclei"]["tuned_on"] - {"g6"}
    assert all(0 <= round(groups[group], 3) <= 0.007 for groups in each for group in others)


def test_the_page_and_the_chapter_say_what_small_data_sets_gave():
    rows = json.loads((ROOT / "docs/results/small-others.json").read_text("utf-8"))["rows"]
    peers, minseg, longer, not_turned = rows
    ahead = [[minseg["sets"][name][k] > peers["sets"][name][k] for name in minseg["sets"]]
             for k in (0, 1)]
    assert [sum(each) for each in ahead] == [5, 4]
    assert all(row[kind]["low"] < 0 < row[kind]["high"] for row in rows[1:]
               for kind in ("mean_difference", "worst_difference"))
    assert abs(longer["seconds"] / peers["seconds"] - 1) < 0.05
    found = not_turned["mean_difference"]
    quoted = "{} [{}, {}]".format(*(pages.signed(-found[name])
                                    for name in ("difference", "high", "low")))
    assert quoted in (ROOT / "minseg/tiling.py").read_text("utf-8")


def test_the_log_says_in_words_what_is_told_from_chance():
    def clear(lines, arm, base="minseg"):
        fold_of, dice = dice_by_contestant(lines)
        row = effect(dice[arm], dice[base], fold_of, paired=True)
        return row["low"] > 0 or row["high"] < 0

    assert clear("log-sparse", "Dice of each image") and clear("log-sparse", "starts at one half")
    assert not clear("log-sparse", "all empty tiles")
    for lines, firm in (("log-sparse", set()), ("log-synthetic", {
            "Dice over the batch", "Dice over the batch, flips and turns only"})):
        fold_of, dice = dice_by_contestant(lines)
        arms = dice.keys() - {"minseg"}
        ps = holm([effect(dice[arm], dice["minseg"], fold_of, paired=True)["p"] for arm in arms])
        assert {arm for arm, p in zip(arms, ps) if p <= 0.05} == firm
    assert clear("log-synthetic", "flips and turns only")
    assert not clear("log-sparse", "flips and turns only")
    for lines, base in (("log-nuclei", "none: the old defaults"), ("h200/log-nuclei", "minseg")):
        others = dice_by_contestant(lines)[1].keys() - {base}
        assert not any(clear(lines, arm, base) for arm in others), lines


def test_the_log_says_what_long_runs_gave():
    page = " ".join((ROOT / "docs/log.md").read_text(encoding="utf-8").split())
    fold_of, dice = dice_by_contestant("h200/race-nuclei-1000")
    row = effect(dice["minseg"], dice["peers"], fold_of, paired=True)
    assert f"reach {row['dice']:.3f}" in page
    assert "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row) in page
    lines = (ROOT / "docs/results/h200/race-nuclei-1000.jsonl").read_text("utf-8").splitlines()
    seconds = {who: statistics.median(run["seconds"] for run in map(json.loads, lines)
                                      if run["contestant"] == who) for who in ("minseg", "peers")}
    assert "took {minseg:.0f} s for that and the peers {peers:.0f} s".format(**seconds) in page
    race = " ".join((ROOT / "docs/race.md").read_text(encoding="utf-8").split())
    assert "{minseg:.0f} against {peers:.0f} s for 1,000 steps".format(**seconds) in race
