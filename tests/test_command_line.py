"""Guard what the tools say to a wrong argument: one line, with the word that was meant."""

import pytest

from resnext_det.command_line import Parser
from resnext_det.errors import InputError


@pytest.fixture
def parser():
    parser = Parser("A tool.\n\n  example   as it was written")
    parser.add_argument("--config-file")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--stage", choices=("rpn", "proposals", "fast_rcnn"))
    parser.add_argument("--num-gpus", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_overrides()
    return parser


def refused(parser, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["tool.py", *words])
    with pytest.raises(InputError) as caught:
        parser.parse_with_overrides()
    message = str(caught.value)
    assert message.startswith("command line: ") and message.isprintable()
    return message.removeprefix("command line: ")


def test_flags_and_overrides_in_any_order(parser, monkeypatch):
    words = ["SEED", "1", "--eval-only", "MODEL.DEVICE", "cpu", "--config-file", "a.yaml"]
    monkeypatch.setattr("sys.argv", ["tool.py", *words])
    args = parser.parse_with_overrides()
    assert args.opts == ["SEED", "1", "MODEL.DEVICE", "cpu"]
    assert args.eval_only and args.config_file == "a.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config_file", "a"], "there is no flag --config_file; did you mean --config-file?"),
        (["--evalonly"], "there is no flag --evalonly; did you mean --eval-only?"),
        (["SEED", "1", "--num-gpus=2x"], "argument --num-gpus: invalid int value: '2x'"),
        (["--gpus=1"], "there is no flag --gpus; did you mean --num-gpus?"),
        (["--data.root", "x"], "--data.root is a config key; write DATA.ROOT VALUE"),
        (["--resum"], "there is no flag --resum; did you mean --resume?"),
        (["--eval"], "there is no flag --eval; did you mean --eval-only?"),
        (["--output-dir", "x"], "there is no flag --output-dir; write the config key OUTPUT_DIR V"),
        (["--lr=0.1"], "there is no flag --lr; write the config key SOLVER.BASE_LR VALUE"),
        (["--frobnicate"], "there is no flag --frobnicate; --help lists all arguments"),
        (["--MODEL.WEIGHTS", "x"], "--MODEL.WEIGHTS is a config key; write MODEL.WEIGHTS VALUE"),
        (["--SEED=3"], "--SEED is a config key; write SEED VALUE"),
        (["config-file", "a.yaml"], "config-file is a flag; write --config-file"),
        (["--stage", "rnp"], "argument --stage is rnp; did you mean rpn?"),
        (["--stage", "zzz"], "--stage is zzz; choose from"),
        (["--config-file"], "argument --config-file: expected one argument"),
        (["--x\x1b[2J\n"], "there is no flag --x"),
    ],
)
def test_what_is_said(parser, monkeypatch, words, said):
    assert said.removeprefix("argument --stage is") in refused(parser, monkeypatch, *words)


def test_a_slip_is_told_before_what_is_missing(monkeypatch):
    parser = Parser("")
    curves = parser.add_subparsers(dest="what", required=True).add_parser("curves")
    curves.add_argument("--output", required=True)
    words = ["curves", "--outptu", "x"]
    monkeypatch.setattr("sys.argv", ["plot.py", *words])
    with pytest.raises(InputError, match="no flag --outptu; did you mean --output"):
        parser.parse_args(words)


def test_a_tool_without_overrides(monkeypatch):
    monkeypatch.setattr("sys.argv", ["score.py", "TEST.SCORER", "hotcoco"])
    with pytest.raises(InputError, match="TEST.SCORER is a config key; leave it away: this tool"):
        Parser("").parse_args(["TEST.SCORER", "hotcoco"])


def test_what_is_required(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool.py"])
    parser = Parser("")
    parser.add_argument("annotations", metavar="JSON")
    with pytest.raises(InputError, match="required: JSON; --help lists all arguments"):
        parser.parse_args([])


def test_commands_of_a_tool_too():
    parser = Parser("")
    curves = parser.add_subparsers(dest="what", required=True).add_parser("curves")
    curves.add_argument("--output")
    with pytest.raises(InputError, match="--outpt; did you mean|there is no flag --outpt"):
        parser.parse_args(["curves", "--outpt", "x"])
    with pytest.raises(InputError, match="did you mean curves"):
        parser.parse_args(["curvs"])


def test_help_is_the_docstring(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "  example   as it was written" in text and "--debug" in text
