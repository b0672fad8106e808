"""Config keys of the plugin. :func:`add_caureid_config` adds them to a FastReID config."""

from __future__ import annotations

from fastreid.config import CfgNode as CN


def add_caureid_config(cfg: CN) -> None:
    """Adds every key of the plugin, with its default, to ``cfg`` (changed in place).

    The symbols are the CA-UReID paper's (arXiv 2112.10089).
    """
    if "CAUREID" in cfg:  # a config that was given one of the plugin's keys before has them all
        return
    # Random seed of the run: Python, NumPy, torch, samplers. -1: a new one each time.
    cfg.SEED = -1
    # Only deterministic algorithms, so that a run with a SEED repeats bit for bit on the same CUDA
    # device too (on the CPU it does so anyway). Slower; an operation of CUDA that has no
    # deterministic form ends the run by name. Sets torch.use_deterministic_algorithms,
    # cudnn.deterministic, CUBLAS_WORKSPACE_CONFIG (unless set) and turns CUDNN_BENCHMARK off.
    cfg.DETERMINISTIC = False
    # Training iterations per epoch. 0: FastReID's rule, number of images // SOLVER.IMS_PER_BATCH.
    cfg.SOLVER.ITERS_PER_EPOCH = 0
    # Cameras of the NUM_INSTANCE images that are drawn of a cluster for a batch. Options:
    #   "mixed": as many different ones as possible.
    #   "one": one and the same; each pair of a cluster and a camera is drawn once in a pass (CAP,
    #          arXiv 2012.10674).
    cfg.DATALOADER.CAMERAS = "mixed"
    # Evaluate features that are standardised within each camera of query and gallery together (Song
    # et al., ICLR 2025): for a network that was not trained on these cameras. Evaluation only:
    # exported networks and Embedder give the features as they are, an index has its own option.
    cfg.TEST.STANDARDIZE_BY_CAMERA = False
    # Evaluate the network before its first step too (scalars start/...).
    cfg.TEST.EVAL_AT_START = False
    # Images per batch-norm group (contiguous in the batch), for the backbone and the head of
    # CAUReID, the same for any number of processes while a process's batch is a multiple of it.
    # 0: plain batch norm over a process's batch.
    cfg.MODEL.BN_GROUP_SIZE = 16
    # Memory layout of the feature maps of CAUReID: channels last (NHWC) instead of NCHW. The same
    # results but for rounding; which is faster depends on the machine and the backbone
    # (tools/benchmarks/training.py).
    cfg.MODEL.CHANNELS_LAST = False

    _add_backbone(cfg)
    _add_head(cfg)
    _add_losses(cfg)
    _add_unsupervised(cfg)
    _add_camera_folder(cfg)


def _add_backbone(cfg: CN) -> None:
    # build_timm_backbone: a model of timm, which is an extra (pip install 'caureid-plugin[timm]').
    cfg.MODEL.BACKBONE.TIMM = CN()
    # Its name, as in timm.list_models(), with or without a tag that names its weights:
    # "resnet18", "resnet18.a1_in1k". FEAT_DIM must be the channels of its map (an error names the
    # number); LAST_STRIDE 1 asks for stride 16, 2 for the model's own; PRETRAIN True downloads its
    # weights, or reads them from PRETRAIN_PATH.
    cfg.MODEL.BACKBONE.TIMM.NAME = ""
    # Options of the model, which replace what its name stands for: name=value, with blanks between:
    # "patch_size=8 depth=4 drop_path_rate=0.1". "": none. They are arguments of timm.create_model.
    cfg.MODEL.BACKBONE.TIMM.OPTIONS = ""
    # Of a vision transformer: pixels from a patch to the next. Below the patches' side they overlap
    # (TransReID: 12 or 11 for patches of 16), which costs time and memory. 0: their side.
    cfg.MODEL.BACKBONE.TIMM.STRIDE = 0
    # Of a vision transformer under CAUReID: a learnt vector for each of the NUM_CAMERAS cameras,
    # added to the tokens in training (TransReID's SIE) with the weight MODEL.BACKBONE.SIE_COE.
    # Evaluation, clustering, search and exported files take the mean camera for every image.
    cfg.MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING = False


def _add_head(cfg: CN) -> None:
    # CamSepHead: splits the feature map F into a camera-specific and a camera-agnostic part.
    camsep = cfg.MODEL.HEADS.CAMSEP = CN()
    # Attention that gives the mask A (eq. 3). Options: "harmonious"; "none": no separation, the
    # embedding comes from F itself (the paper's baseline), no camera branch.
    camsep.ATTENTION = "harmonious"
    # Range of A. Options: "full" (0..1); "half" (0.5..1, as in HA-CNN: 1 - A stays below 0.5).
    camsep.RANGE = "full"
    # Start with A = 0.5 everywhere, so that the first embedding is the pretrained one. Needs
    # RANGE "full".
    camsep.UNIFORM_START = True
    # Squeeze factor of the channel attention (16 in HA-CNN).
    camsep.REDUCTION = 16
    # Compute the mask from a detached F: the camera classifier's gradient stays out of the
    # backbone, and so does the identity losses' gradient through the mask, which learns from both.
    camsep.DETACH = False
    # C, number of cameras in the training set. Needed by CameraSeparationLoss; checked against
    # the data. 0: no camera classifier. -1: as many as the training set has, for
    # caureid_plugin.fit_to_data (called by the tools) to count; with a single one it switches
    # everything off that tells cameras apart.
    camsep.NUM_CAMERAS = 0


def _add_losses(cfg: CN) -> None:
    # Losses are chosen by MODEL.LOSSES.NAME; these are the options of the plugin's own.
    # InfoNCELoss: against all cluster centroids.
    cfg.MODEL.LOSSES.INFONCE = CN()
    # t of the softmax, > 0 (SpCL's value).
    cfg.MODEL.LOSSES.INFONCE.TEMPERATURE = 0.05
    # Weight of the loss in the total (1 in eq. 2).
    cfg.MODEL.LOSSES.INFONCE.SCALE = 1.0
    # CameraSeparationLoss (eq. 4), cross entropy over cameras. SCALE: lambda of L_cs in eq. 2.
    cfg.MODEL.LOSSES.CAMSEP = CN()
    cfg.MODEL.LOSSES.CAMSEP.SCALE = 0.4
    # CACCLoss (eqs. 6, 7). SCALE: lambda of L_CACC in eq. 2.
    cfg.MODEL.LOSSES.CACC = CN()
    cfg.MODEL.LOSSES.CACC.SCALE = 1.0
    # t in eq. 7.
    cfg.MODEL.LOSSES.CACC.TEMPERATURE = 0.07
    # k in eq. 7: nearest camera centres of other clusters.
    cfg.MODEL.LOSSES.CACC.NUM_NEGATIVES = 50
    # What is an anchor. Options: "centre" (camera centres of the batch, the paper's CACC);
    # "sample" (every image, the paper's comparison in table 2).
    cfg.MODEL.LOSSES.CACC.ANCHOR = "centre"
    # L2-normalise camera centres, the bank's and the batch's.
    cfg.MODEL.LOSSES.CACC.NORMALIZE = True
    _add_losses_of_peers(cfg)


def _add_losses_of_peers(cfg: CN) -> None:
    # CAPLoss (arXiv 2012.10674): within a camera, and across cameras. SCALE: of both together.
    cfg.MODEL.LOSSES.CAP = CN()
    cfg.MODEL.LOSSES.CAP.SCALE = 1.0
    # t of both.
    cfg.MODEL.LOSSES.CAP.TEMPERATURE = 0.07
    # Across cameras: nearest proxies of other clusters.
    cfg.MODEL.LOSSES.CAP.NUM_NEGATIVES = 50
    # Weight of the loss across cameras (CAP, ICE).
    cfg.MODEL.LOSSES.CAP.INTER_SCALE = 0.5
    # First epoch, counted from 0, in which CAPLoss uses it.
    cfg.MODEL.LOSSES.CAP.INTER_EPOCH = 5
    # ICELoss (arXiv 2103.16364). SCALE: of all its parts together. Its loss against camera proxies
    # takes TEMPERATURE, NUM_NEGATIVES and INTER_SCALE of MODEL.LOSSES.CAP.
    cfg.MODEL.LOSSES.ICE = CN()
    cfg.MODEL.LOSSES.ICE.SCALE = 1.0
    # t against the centroids of clusters, of features that are not normalised.
    cfg.MODEL.LOSSES.ICE.TEMPERATURE = 0.5
    # t against the hardest key of the cluster and the keys of others.
    cfg.MODEL.LOSSES.ICE.HARD_TEMPERATURE = 0.1
    # t of the similarities that views of the images have in common, and the weight of that loss.
    cfg.MODEL.LOSSES.ICE.SOFT_TEMPERATURE = 0.4
    cfg.MODEL.LOSSES.ICE.SOFT_SCALE = 10.0
    # alpha, [0, 1): weight of the OLD value in the teacher, which is averaged after every step.
    cfg.MODEL.LOSSES.ICE.MOMENTUM = 0.999


def _add_unsupervised(cfg: CN) -> None:
    # UnsupervisedHook: when to cluster and how to label.
    node = cfg.CAUREID = CN()
    # Where pseudo labels come from. Options:
    #   "bank": cluster the memory bank; an outlier becomes a cluster of its own (SpCL, with its
    #           criterion of reliable clusters, CLUSTER.EPS_GAP).
    #   "extract": extract all features anew at each clustering; outliers are not trained on
    #              (ClusterContrast).
    node.LABELS = "bank"
    # Cluster at the start of every CLUSTER_PERIOD-th epoch (1: every epoch, as in the paper).
    node.CLUSTER_PERIOD = 1
    # Log the adjusted Rand index of the clusters. It needs the true identities, which are read only
    # for this figure and never reach training. For studies only.
    node.DIAGNOSTICS = False

    node.MEMORY = CN()
    # mu in eq. 1: weight of the OLD value. 0.2 for Market-1501, 0.1 for DukeMTMC-reID.
    node.MEMORY.MOMENTUM = 0.2
    # How centroids and camera centres move between clusterings. Options:
    #   "mean": they are the means of the bank's features (SpCL, CA-UReID).
    #   "momentum": vectors of their own, moved by every image of a batch, as in eq. 1
    #               (ClusterContrast, CAP).
    #   "hard": the same, moved only by the image of a batch that is least similar to them
    #           (ClusterContrast with hard instances).
    #   "fixed": not at all (ICE).
    node.MEMORY.CENTRES = "mean"

    node.CLUSTER = CN()
    # k1: neighbours in the k-reciprocal encoding; k2: neighbours in its query expansion. Where the
    # data has tracks (CAMERA_FOLDER.TRACK), tracks are clustered in place of images, these counts
    # and those below are of tracks (configs/OwnData/caureid_tracks.yml has some that fit), and
    # tracks that are in one camera at one time never share a cluster.
    node.CLUSTER.K1 = 30
    node.CLUSTER.K2 = 6
    # Camera-aware neighbours (CA-Jaccard, arXiv 2311.10605) instead: searched separately within
    # the image's camera ("intra") and across cameras ("inter"). K1 and K2 are then not used.
    node.CLUSTER.CAMERA_AWARE = False
    # k1_intra, k1_inter of that paper: neighbours of each kind.
    node.CLUSTER.K1_INTRA = 5
    node.CLUSTER.K1_INTER = 20
    # k2_intra (the image itself included), k2_inter: neighbours in the query expansion.
    node.CLUSTER.K2_INTRA = 2
    node.CLUSTER.K2_INTER = 4
    # The same two at the first clustering, before any training.
    node.CLUSTER.K2_INTRA_FIRST = 3
    node.CLUSTER.K2_INTER_FIRST = 3
    # DBSCAN: largest Jaccard distance (0..1) of neighbours. 0.5 for Market-1501, 0.6 for Duke.
    node.CLUSTER.EPS = 0.5
    # Eps of the first clustering; it goes to EPS in equal steps, which it reaches at epoch
    # EPS_FIRST_EPOCHS. A weak start needs a wider one, as few images agree on their neighbours
    # yet. Both 0: EPS throughout.
    node.CLUSTER.EPS_FIRST = 0.0
    node.CLUSTER.EPS_FIRST_EPOCHS = 0
    # Search neighbours among features that are standardised within each camera (Song et al., ICLR
    # 2025), so that what a camera adds to all of its images does not make them neighbours.
    node.CLUSTER.STANDARDIZE = False
    # SpCL's criterion, only with LABELS "bank": an image whose cluster changes too much between
    # EPS - EPS_GAP, EPS and EPS + EPS_GAP becomes an outlier. 0: without.
    node.CLUSTER.EPS_GAP = 0.02
    # DBSCAN: neighbours (itself included) that make a core point; tracks, where there are any.
    node.CLUSTER.MIN_SAMPLES = 4
    # How neighbours are searched. Options: "torch" (exact, CPU or GPU), "torch-pca" (approximate,
    # by principal components), "faiss-flat" (exact), "auto" (torch on a GPU and up to 200,000
    # images on a CPU, beyond that torch-pca).
    node.CLUSTER.SEARCH = "auto"
    # Approximate search: share (0..1] of the true neighbours to find, measured on a sample.
    node.CLUSTER.RECALL = 0.99
    # GiB that clustering may take beyond the features; more is an error before it starts. 0: what
    # the machine has free.
    node.CLUSTER.MAX_MEMORY = 0.0


def _add_camera_folder(cfg: CN) -> None:
    # The dataset CameraFolder (DATASETS.NAMES, DATASETS.TESTS): images of one's own, without
    # identities.
    node = cfg.CAMERA_FOLDER = CN()
    # Folder of the training images, searched with all folders below it (links are followed, hidden
    # names left out); relative to the current directory, or from ~.
    node.ROOT = ""
    # Where an image's camera is read from. Options:
    #   "folder": the name of a folder that it lies in, chosen by LEVEL.
    #   "pattern": its path, by PATTERN.
    #   "csv": a table, CSV.
    #   "none": all images are of one camera.
    # Names that are whole numbers compare as numbers: 01 and 1.0 are 1.
    node.CAMERA = "folder"
    # For "folder": which one names the camera. 1: the first below ROOT, 2: the second, ...; -1: the
    # one that holds the image, -2: the one above it, ...
    node.LEVEL = 1
    # For "pattern": a regular expression with one group, or one named "camera", that holds the
    # camera: _c([0-9]+) reads 3 from 0002_c3s1.jpg. It is searched in the path below ROOT, with /
    # between folders. Several are separated by blanks (in one, a blank is \s): one must match an
    # image; if more do, they must agree.
    node.PATTERN = ""
    # For "csv": a UTF-8 file with a header line and the columns path and camera, separated by
    # commas. A path is absolute, or relative to the folder of the file. Every image below ROOT
    # needs a row, every row an image. TRACK and TIME may read it too.
    node.CSV = ""
    # Where an image's track is read from: the images that a tracker says are of one person. The
    # same name under another camera is another track. Options: "none"; "folder": TRACK_LEVEL;
    # "pattern": the group "track" of TRACK_PATTERN; "csv": the column track of CSV, as `caureid
    # crops` writes it (an empty cell: no track).
    node.TRACK = "none"
    # For "folder": as LEVEL. -1: the folder that holds the image.
    node.TRACK_LEVEL = -1
    # For "pattern", of TRACK or TIME: a regular expression, searched as PATTERN is, with the named
    # groups that are read: t(?P<track>[0-9]+)_f(?P<time>[0-9]+).
    node.TRACK_PATTERN = ""
    # When an image was taken, as a number, by one clock for each camera: seconds, or the frame.
    # Two tracks (or images without one) of a camera at one time are two people. Options: "none";
    # "pattern": the group "time" of TRACK_PATTERN; "csv": the column seconds of CSV.
    node.TIME = "none"
    # What to do with an image for which no camera is found. Options: "error"; "skip" (it is left
    # out; a warning counts them).
    node.UNMATCHED = "error"
    # Folders below ROOT, QUERY and GALLERY in which NAS and desktop systems keep thumbnails and
    # deleted files (@eaDir, #recycle, $RECYCLE.BIN, lost+found, __MACOSX, ...). Options: "skip"
    # (the log says how many images that leaves out); "read": they are folders like others.
    node.SYSTEM_FOLDERS = "skip"
    # Images below ROOT that are not trained on: a CSV file like that of CSV, with the column path.
    # caureid check --empty writes one of the images that show nothing. "": none.
    node.LEAVE_OUT = ""
    # Labelled images to evaluate with, both or neither; they are never trained on unless they lie
    # below ROOT. Each is a folder of images named as in Market-1501 (identity and camera first, as
    # in 0002_c1_000451.jpg), or a .csv file like that of CSV with the columns path, identity (any
    # text) and camera. Identity -1 is left out. Where all are of one camera, the two are compared
    # as sets; else gallery images of the query's own camera are left out.
    node.QUERY = ""
    node.GALLERY = ""
