"""Every config key of ours, with its default, unit and source."""

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

# Pixel statistics of the ImageNet recipe (RGB, 0..255), which the paper's own models,
# torchvision's and timm's share. Detectron2's default (BGR, std 1) fits only MSRA's files.
IMAGENET_MEAN = (123.675, 116.280, 103.530)
IMAGENET_STD = (58.395, 57.120, 57.375)


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = list(IMAGENET_MEAN)
    cfg.MODEL.PIXEL_STD = list(IMAGENET_STD)
    # ResNeXt keeps the stride in the 3x3 (paper, Table 1; facebookresearch/ResNeXt resnext.lua).
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    # Scales the stem, every block's output and the bottleneck width; 1.0 is the paper's network.
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 1.0
    # Which of Fig. 3's equal forms computes a block: "a", "b", or "c" (grouped convolution).
    cfg.MODEL.RESNETS.FORM = "c"
    # False leaves identities and projections out (the ablation of paper, Sec. 5.1).
    cfg.MODEL.RESNETS.SHORTCUT = True
    # Arithmetic of trunk, RPN convolution and res5: "fp32", "bf16", "fp16" (with loss scaling), or
    # "auto" (bf16 where the processor has instructions for it). Pooling, losses and boxes are
    # always fp32.
    cfg.MODEL.PRECISION = "fp32"
    # Memory layout of images and feature maps inside the trunk.
    cfg.MODEL.CHANNELS_LAST = True
    # Fold norms whose statistics do not change into the convolutions, and let one operator do
    # convolution, sum and ReLU where there is one (models/folding.py), or batch norm, sum and ReLU
    # in training (models/training_norm.py); equal to rounding.
    cfg.MODEL.FUSE = True
    # "auto": a grouped convolution is computed with as many groups as a short measurement finds
    # fastest here, or on a GPU by a kernel of our own where that is (models/measured.py); "off":
    # with C. Equal to rounding.
    cfg.MODEL.REGROUP = "auto"
    # True: blocks compute their inner features again in the backward pass instead of keeping them:
    # less memory, a third more time, the same numbers.
    cfg.MODEL.RECOMPUTE = False
    # True: the trunk by torch.compile (models/compiled.py), meant for GPUs; on a CPU it was slower
    # (docs/speed.md). Costs a minute or so at the first batch of a shape, wants REGROUP "off" and
    # RECOMPUTE False, and leaves FUSE to the compiler. Equal to rounding.
    cfg.MODEL.COMPILE = False
    # Stride of res5's first block on RoIs. Neither the paper nor He et al. 2016 say how a RoI
    # becomes res5's 7 x 7: 2 with POOLER_RESOLUTION 14, as in the trunk and in Detectron, or 1 with
    # POOLER_RESOLUTION 7, the size that py-faster-rcnn pools to for VGG-16.
    cfg.MODEL.ROI_BOX_HEAD.RES5_STRIDE = 2
    # Patterns (fnmatch) of parameters that may be missing from MODEL.WEIGHTS.
    cfg.MODEL.WEIGHTS_ALLOW_MISSING = ()


def _add_solver_keys(cfg: CfgNode) -> None:
    # Classification counts in epochs: > 0, or steps given, they become MAX_ITER and STEPS once the
    # set is known. A MAX_ITER or STEPS on a command line goes before a recipe's epochs.
    cfg.SOLVER.MAX_EPOCHS = 0.0
    cfg.SOLVER.EPOCH_STEPS = ()
    # Parts of a step's batch that go through the network one after the other, their gradients
    # summed; batch norm's statistics are of a part.
    cfg.SOLVER.ACCUMULATE = 1
    # The batch that BASE_LR, MAX_ITER, STEPS and WARMUP_ITERS are meant for; with another
    # IMS_PER_BATCH they follow by the linear rule (engine/batch.py). 0: they are taken as they are.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Of these four, the ones that are taken as they are all the same; a command line adds those
    # that it gives a value.
    cfg.SOLVER.REFERENCE_KEEPS = ()
    # Evaluations (every TEST.EVAL_PERIOD iterations) in a row without a better figure, after which
    # a stage's training ends; 0: it never ends early.
    cfg.SOLVER.EARLY_STOP = 0
    # What a stage hands on: the weights after its "last" iteration, or its "best" ones by AP
    # (Fast R-CNN) or AR@1000 (RPN) on DATASETS.TEST, which then takes part in the training.
    cfg.SOLVER.FINAL_WEIGHTS = "last"
    # How many of the newest checkpoints stay on disk in each stage's folder.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    # Each network has its own solver (paper, Appendix B). IMS_PER_BATCH is over all processes.
    # JOINT is for MODEL.META_ARCHITECTURE "SharedRCNN", whose two networks are trained as one.
    for stage, ims, lr in (("RPN", 16, 0.02), ("FAST_RCNN", 8, 0.005), ("JOINT", 16, 0.02)):
        node = CfgNode()
        node.IMS_PER_BATCH = ims
        node.REFERENCE_BATCH = 0
        node.REFERENCE_KEEPS = ()
        node.BASE_LR = lr
        node.STEPS = (120000,)
        node.MAX_ITER = 180000
        cfg.SOLVER[stage] = node


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets of the user's own: [[name, COCO json, image folder], ...]; DATASETS.TRAIN and
    # TEST then list the names. Paths are relative to the working directory.
    cfg.DATASETS.COCO_JSON = []
    # Leave boxes without area out instead of refusing the file (COCO's train2017 holds two).
    cfg.DATASETS.DROP_EMPTY_BOXES = False
    # Images for classification: ROOT/train/<class>/*, ROOT/val/<class>/*, or one of the other
    # layouts of docs/images.md.
    cfg.DATA = CfgNode()
    cfg.DATA.ROOT = "datasets/imagenet"
    # A split as an image list (its format: data/lists.py); "" takes the split from ROOT itself.
    # Paths in a list are relative to ROOT, those of the validation list to VAL_ROOT if that is set.
    cfg.DATA.TRAIN_LIST = ""
    cfg.DATA.VAL_LIST = ""
    cfg.DATA.VAL_ROOT = ""
    # > 0: the validation list is of the first so many classes only (ImageNet-5K: 1000), and is
    # also scored among these alone (paper, Table 6: "1K-way"); 0: among all classes only.
    cfg.DATA.EVAL_CLASSES = 0
    # True: the next readable image takes the place of a training image that cannot be read, and
    # the log names and counts them; in validation it is an error always.
    cfg.DATA.SKIP_UNREADABLE = False
    # Side of the square training and test crop, and of the short side before a test crop; pixels.
    # For Table 5's 320 crop the paper does not state the short side; 320 here, the whole of it.
    cfg.DATA.CROP_SIZE = 224
    cfg.DATA.RESIZE_SIZE = 256
    # Share of the image's area that a training crop covers at least (0..1).
    cfg.DATA.MIN_CROP_AREA = 0.08
    # How a training crop's aspect in 3/4..4/3 is drawn: "uniform" as the paper's code does, or
    # "log" as torchvision does.
    cfg.DATA.CROP_ASPECT = "log"
    cfg.DATA.INTERPOLATION = "bicubic"
    # Largest relative change of brightness, contrast and saturation (0.4 in the paper's code), and
    # the spread of the PCA lighting (0.1 there); 0 leaves the step out.
    cfg.DATA.COLOR_JITTER = 0.0
    cfg.DATA.LIGHTING = 0.0
    # > 0: CIFAR's augmentation, a crop of the normalised image padded by so many zero pixels.
    cfg.DATA.PAD = 0
    # Views of a test image: "single" centre crop, "ten_crop" or "dense" (whole images at each
    # short side of TEST_SCALES; He et al. 2016, Sec. 3.4).
    cfg.DATA.TEST_PROTOCOL = "single"
    cfg.DATA.TEST_SCALES = (224, 256, 384, 480, 640)
    cfg.DATA.TEST_BATCH_SIZE = 100


def _add_loader_keys(cfg: CfgNode) -> None:
    # One seed fixes every draw, and on a CPU every sum. True: on GPUs too, where there are kernels
    # that sum in one order; slower, and RoI pooling has none in training (engine/seeding.py).
    cfg.DETERMINISTIC = False
    # True: for training, JPEGs far larger than the network's input are decoded at a half, a quarter
    # or an eighth of their sides (data/reduced.py): sooner, and not the same pixels.
    cfg.DATALOADER.REDUCED_DECODE = False


def _add_check_keys(cfg: CfgNode) -> None:
    # What is done about a faulty data set (docs/data.md); DATASETS.DROP_EMPTY_BOXES is above.
    # Before training every picture's header is read; True: its pixels too.
    cfg.DATASETS.DECODE_IMAGES = False
    # Leave images that are missing or unreadable out, with their annotations, instead of stopping.
    cfg.DATASETS.DROP_BAD_IMAGES = False
    # Count annotation ids that are missing or repeated anew, instead of refusing the file.
    cfg.DATASETS.RENUMBER_ANNOTATIONS = False
    # Pictures of more pixels are refused: a guard against files that fill the memory. The default
    # is Pillow's own.
    cfg.DATASETS.MAX_IMAGE_PIXELS = 178_956_970


def _add_proposal_keys(cfg: CfgNode) -> None:
    # Proposals for the training images are made in test mode, without a limit before NMS,
    # 2000 kept (py-faster-rcnn, tools/train_faster_rcnn_alt_opt.py). A limit of 0 means none.
    cfg.PROPOSALS = CfgNode()
    cfg.PROPOSALS.PRE_NMS_TOPK = 0
    cfg.PROPOSALS.POST_NMS_TOPK = 2000
    # Proposals an image that average recall is measured on at most (AR@1000).
    cfg.TEST.PROPOSALS_TOPK = 1000
    # Images a process evaluates at once, at most; a batch holds images of one size only.
    cfg.TEST.IMS_PER_BATCH = 1
    # True: with TEST.EVAL_PERIOD, the losses on DATASETS.TEST as well, in the training's own terms.
    cfg.TEST.VALIDATION_LOSS = False
    # Who computes AP: "pycocotools", "hotcoco" (extra "fast" of setup.py), or "auto": hotcoco where
    # it is installed and gives pycocotools' figures on a small set, else pycocotools. The figures
    # are the same (docs/evaluation.md).
    cfg.TEST.SCORER = "auto"
    # Names of the classes that AP is over; others are left out, objects and detections. (): all.
    cfg.TEST.CLASSES = ()


def _add_exchange_keys(cfg: CfgNode) -> None:
    # Proposal files (docs/proposals.md) that Fast R-CNN is trained on instead of the run's own;
    # together they hold every training image, by its id. Paths as in DATASETS.COCO_JSON.
    cfg.PROPOSALS.FILES = ()
    # True: nothing is stored; the run's RPN makes the same proposals while Fast R-CNN is trained.
    cfg.PROPOSALS.ONLINE = False


def get_cfg() -> CfgNode:
    """Detectron2's default config plus the keys of this package.

    Differs from Detectron2's defaults in four keys, so that they fit ResNeXt weights:
    ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``, ``MODEL.RESNETS.STRIDE_IN_1X1``.
    The network is Detectron2's, ResNet-50: DEPTH 50, NUM_GROUPS 1, WIDTH_PER_GROUP 64.
    """
    cfg = get_detectron2_cfg()
    _add_model_keys(cfg)
    _add_solver_keys(cfg)
    _add_data_keys(cfg)
    _add_loader_keys(cfg)
    _add_check_keys(cfg)
    _add_proposal_keys(cfg)
    _add_exchange_keys(cfg)
    return cfg
