"""The strategies that come with tokentrim: one published method per file, registered like a stranger's."""

from typing import Final

from tokentrim import Register, hookimpl

# name, target in this package, stage (as in the class), summary
_STRATEGIES: Final = (
    ("none", "none:NoPruning", "none", "keep everything: the baseline"),
    ("random", "random_control:Random", "prefill", "keep random tokens: the control that any method has to beat"),
    (
        "uniform",
        "uniform:Uniform",
        "prefill",
        "keep one token of each of equal stretches of the raster: the second control",
    ),
    ("pool", "pool:Pool", "input", "average neighbouring tokens before the language model"),
    ("fastv", "fastv:FastV", "prefill", "FastV: one cut after layer k, by attention of the last prompt token"),
    ("pvtp", "pvtp:PVTP", "prefill", "the spatial half of ST3: drop a share every few layers"),
    ("vta", "vta:VTA", "decode", "the temporal half of ST3: fewer visual entries with every generated token"),
    ("st3", "st3:ST3", "prefill", "ST3: pvtp and vta together"),
    ("layer-counts", "layer_counts:LayerCounts", "prefill", "a calibrated keep rate per layer (G-Search, P-Sigmoid)"),
    ("dyvte", "dyvte:DyVTE", "prefill", "DyVTE: trained routers decide per prompt after which layer the image leaves"),
    ("quecc", "quecc:QueCC", "input", "QueCC: a trained module merges a picture into 1 to 36 tokens for its question"),
    ("sgl", "sgl:SGL", "prefill", "SGL: a small model answers first, and what it looked at stays"),
    (
        "vtw",
        "vtw:Withdrawal",
        "prefill",
        "VTW: withdraw every visual token at half of the depth, or where a search says",
    ),
    ("sparsevlm", "sparsevlm:SparseVLM", "prefill", "SparseVLM: a few cuts, rated by relevant words; recycles some"),
    ("fastervlm", "fastervlm:FasterVLM", "input", "FasterVLM: what the vision tower's [CLS] attends to"),
    ("vispruner", "vispruner:VisPruner", "input", "VisPruner: what [CLS] attends to, and tokens unlike each other"),
    ("vtc-cls", "vtc_cls:VTCCLS", "input", "VTC-CLS: what [CLS] attends to over several blocks of the tower"),
    ("prumerge", "prumerge:PruMerge", "input", "PruMerge(+): tokens that stand out to [CLS], their neighbours added"),
    ("hired", "hired:HiRED", "input", "HiRED: a budget for each tile of an image, by what [CLS] attends to"),
    ("hiprune", "hiprune:HiPrune", "input", "HiPrune: what a middle block attends to, with neighbours, and registers"),
    ("vscan", "vscan:VScan", "prefill", "VScan: windows and whole pictures before the model, the question inside it"),
    ("yopo", "yopo:YOPO", "prefill", "YOPO: visual tokens see neighbours, some heads do without them, deep layers too"),
    ("divprune", "divprune:DivPrune", "input", "DivPrune: tokens that lie far from each other, whatever was asked"),
    ("holov", "holov:HoloV", "input", "HoloV: every strip of the picture keeps as much as [CLS] attends to it"),
    ("visionzip", "visionzip:VisionZip", "input", "VisionZip: what [CLS] attends to, the others merged by their keys"),
    ("tally", "tally:RunningTally", "prefill", "cut early, by what all words of the question have looked at so far"),
    ("scope", "scope:SCOPE", "input", "SCOPE: tokens that cover the picture best, weighed by [CLS] attention"),
    (
        "pyramiddrop",
        "pyramiddrop:PyramidDrop",
        "prefill",
        "PyramidDrop: halve at three depths, by the last token's attention",
    ),
    ("vidcom2", "vidcom2:VidCom2", "input", "VidCom2: what differs from the mean of its frame and of its video"),
    ("dycoke", "dycoke:DyCoke", "input", "DyCoke: thin out frames that repeat, read few visual entries at each step"),
    ("cdpruner", "cdpruner:CDPruner", "input", "CDPruner: tokens unlike each other, where the question weighs them"),
    ("tome", "tome:ToMe", "input", "ToMe: patches merge with their like in every block of the vision tower"),
    ("evs", "evs:EVS", "input", "EVS: of a video, what changes from frame to frame; images stay whole"),
    ("dart", "dart:DART", "prefill", "DART: tokens unlike a few pivots; what duplicates them goes"),
    ("scissor", "scissor:Scissor", "input", "LLaVA-Scissor: tokens that are connected by likeness become one"),
    ("mmtok", "mmtok:MMTok", "input", "MMTok: tokens that cover the question's words and the picture at once"),
    ("globalcom2", "globalcom2:GlobalCom2", "input", "GlobalCom2: the thumbnail says how much of each tile stays"),
    (
        "v2drop",
        "v2drop:V2Drop",
        "prefill",
        "V2Drop: what a layer changes most stays, at three depths; no attention is read",
    ),
    ("snapkv", "snapkv:SnapKV", "decode", "SnapKV: layers keep the entries that the end of the prompt attends to"),
    ("framefusion", "framefusion:FrameFusion", "prefill", "FrameFusion: merge what repeats over frames, then cut once"),
    ("prunevid", "prunevid:PruneVid", "prefill", "PruneVid: merge what stands still in a scene, then let words choose"),
    (
        "fitprune",
        "fitprune:FitPrune",
        "prefill",
        "FitPrune: a calibrated recipe; what image and question look at least goes",
    ),
    ("lookm", "lookm:LookM", "decode", "LOOK-M: layers keep the entries that were looked at, and merge the others"),
    ("replay", "replay:Replay", "prefill", "apply the decisions that a saved trace recorded"),
    ("oracle", "oracle:Oracle", "prefill", "keep what the task says is needed: an upper bound, testbed only"),
    ("text-only", "text_only:TextOnly", "prefill", "drop every visual token: what the text alone gives away"),
)


@hookimpl
def tokentrim_strategies(register: Register) -> None:
    """Register every strategy of this package by name; nothing is imported until a name is asked for."""
    for name, target, stage, summary in _STRATEGIES:
        register(name, f"tokentrim_strategies.{target}", stage=stage, summary=summary)
