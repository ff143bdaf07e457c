"""Canonical tensordict keys.

Shape letters: ``*B`` batch (time, where there is one, is its last dimension),
``H`` chunk, ``A`` action, ``S`` state, ``C h w`` image.

============================== ========= ================ ========================
key                            dtype     shape            meaning
============================== ========= ================ ========================
``("observation", "image")``   uint8,    ``[*B,C,h,w]``   RGB camera image; uint8 is
                               float                      0..255, float is 0..1.
                                                          Several cameras: a
                                                          sub-tensordict
                                                          ``{camera: image}``
``("observation", "state")``   float     ``[*B, S]``      proprioception; names and
                                                          units in the metadata
``(..., "environment_state")`` float     ``[*B, E]``      beside ``state``: simulator
                                                          state that no camera shows
``observation_history``                  ``[*B, T, ...]`` the last ``T`` observations,
                                                          the oldest first, under the
                                                          names of ``observation``
``history_is_pad``             bool      ``[*B, T]``      **True = padded**: before the
                                                          episode's first frame, which
                                                          stands in for it
``language_instruction``       text,     ``[*B]``         what the robot is told to
                               int64                      do: text at the edges,
                                                          ``InstructionTable`` ids on
                                                          hot paths
``action``                     float     ``[*B, A]``      one executed action
``expert_action``              float     ``[*B, A]``      what an expert meant to do,
                                                          before noise; the target
``previous_action``            float     ``[*B, A]``      the absolute command before
                                                          this step's (before the
                                                          chunk's first)
``action_base``                float     ``[*B, A]``      what a conversion's relative
                                                          actions are measured from,
                                                          left for the way back
``action_chunk``               float     ``[*B, H, A]``   the next ``H`` actions
``action_is_pad``              bool      ``[*B, H]``      **True = padded**: past the
                                                          episode's end, to be ignored
``action_dim_is_pad``          bool      ``[*B, A]``      **True = padded**: a dimension
                                                          that this row's robot lacks
``state_dim_is_pad``           bool      ``[*B, S]``      the same of its state
``camera_is_pad``              bool      ``{camera:       the same of its cameras; a
                                         [*B]}``          padded image is black
``embodiment_index``           int64     ``[*B]``         the dataset of a mixture
                                                          that a row is from: its robot
                                                          and its statistics
``action_tokens``              int64     ``[*B, H, A]``   discrete actions, one for each
                                         or ``[*B, L]``   number, or a sequence for the
                                                          chunk, filled up with its
                                                          tokenizer's end token
``is_intervention``            bool      ``[*B, 1]``      True = an expert acted in the
                                                          policy's place
``is_labeled``                 bool      ``[*B, 1]``      False = the action is not the
                                                          expert's, so no target;
                                                          absent: all are
``sample_weight``              float     ``[*B]``         weight of a sample in a
                                                          cloning loss; 0 = ignored
``chunk_sample``               float     ``[*B, H, A]``   the chunk that a Gaussian
                                                          head sampled, model space
``denoising_path``             float     ``[*B,K+1,H,A]`` what a flow or diffusion head
                                                          sampled: noise first, the
                                                          chunk last, model space
``log_probs``                  float     ``[*B]``         log-probability of the tokens,
                                                          chunk or path that was chosen
``element_log_probs``          float     ``[*B, H, A]``   its per-dimension (per-token)
                                         or ``[*B, L]``   terms
``reference_log_probs``        float     ``[*B, H, A]``   the same under a frozen
                                                          reference policy
``guide_chunk``                float     ``[*B, H, A]``   real-time chunking: actions
                                                          that a new chunk continues
``guide_weight``               float     ``[*B, H]``      how strictly: 1 = frozen,
                                                          0 = free
``success``                    bool      ``[*B, 1]``      True = task achieved
``is_init``                    bool      ``[*B, 1]``      True = an episode's first
                                                          step
``episode_index``              int64     ``[*B]``         the episode of a frame
``frame_index``                int64     ``[*B]``         0-based step within the
                                                          episode
``episode_seed``               int64     ``[*B]``         seed that made the episode's
                                                          initial state
``noise_seed``                 int64     ``[*B]``         seed of a sampling policy's
                                                          noise on this step, a hash
                                                          of episode and step; absent:
                                                          PyTorch's global generator
``is_decision``                bool      ``[*B, 1]``      True = the policy was called
                                                          on this step
``decision_index``             int64     ``[*B, 1]``      number of the decision whose
                                                          chunk is being executed
``observation_age``            int64     ``[*B, 1]``      steps from the observation
                                                          that a chunk was planned from
                                                          to its first executed action
``observation_needed``         bool      ``[*B, 1]``      True = the policy reads the
                                                          next observation; absent:
                                                          it may
``image_is_stale``             bool      ``[*B, 1]``      True = the image shows an
                                                          earlier step; only of
                                                          environments that render
                                                          on demand
``observed_at_s``              float64   ``[*B, 1]``      seconds on the clock of the
                                                          robot's process when the
                                                          observation was taken; no
                                                          instant leaves the process
``session_id``                 int64     ``[*B, 1]``      random number of the robot's
                                                          session, begun by each reset
``is_waiting``                 bool      ``[*B, 1]``      True = this environment waits
                                                          for the others
``executed_steps``             int64     ``[*B, 1]``      base steps that an outer
                                                          step ran
``is_executed``                bool      ``[*B, H]``      True = this position of the
                                                          chunk was executed
``observation_features``       float     ``[*B, F]``      what a frozen encoder makes
                                                          of the observation
``base_chunk``                 float     ``[*B, H, A]``   chunk of the frozen policy
                                                          that another one corrects
``candidate_chunks``           float     ``[*B, n,        chunks that a frozen policy
                                         H, A]``          sampled, to choose from
``chunk_noise``                float     ``[*B, H, A]``   initial noise that a denoising
                                                          policy starts from
``return_to_go``               float     ``[*B, 1]``      discounted rewards from a
                                                          decision to the episode's end
``row_index``                  int64     ``[N]``          row of the flattened ``[*B]``
                                                          that a decision is from
============================== ========= ================ ========================

These are the shared defaults. Components take other keys for the entries of a policy,
an environment or a dataset; entries that only our components exchange (such as
``observation_needed`` or ``is_waiting``) have these keys alone.
"""

from __future__ import annotations

from tensordict import NestedKey

OBSERVATION_KEY: NestedKey = "observation"
IMAGE_KEY: NestedKey = ("observation", "image")
#: Channels that an image may have: grey, RGB, RGB with a fourth.
IMAGE_CHANNELS = (1, 3, 4)
STATE_KEY: NestedKey = ("observation", "state")
ENVIRONMENT_STATE_KEY: NestedKey = ("observation", "environment_state")
HISTORY_KEY: NestedKey = "observation_history"
HISTORY_IS_PAD_KEY: NestedKey = "history_is_pad"
INSTRUCTION_KEY: NestedKey = "language_instruction"

ACTION_KEY: NestedKey = "action"
EXPERT_ACTION_KEY: NestedKey = "expert_action"
PREVIOUS_ACTION_KEY: NestedKey = "previous_action"
ACTION_BASE_KEY: NestedKey = "action_base"
ACTION_CHUNK_KEY: NestedKey = "action_chunk"
ACTION_IS_PAD_KEY: NestedKey = "action_is_pad"
ACTION_DIM_IS_PAD_KEY: NestedKey = "action_dim_is_pad"
STATE_DIM_IS_PAD_KEY: NestedKey = "state_dim_is_pad"
CAMERA_IS_PAD_KEY: NestedKey = "camera_is_pad"
EMBODIMENT_KEY: NestedKey = "embodiment_index"
ACTION_TOKENS_KEY: NestedKey = "action_tokens"
IS_INTERVENTION_KEY: NestedKey = "is_intervention"
IS_LABELED_KEY: NestedKey = "is_labeled"
SAMPLE_WEIGHT_KEY: NestedKey = "sample_weight"
CHUNK_SAMPLE_KEY: NestedKey = "chunk_sample"
DENOISING_PATH_KEY: NestedKey = "denoising_path"
LOG_PROBS_KEY: NestedKey = "log_probs"
ELEMENT_LOG_PROBS_KEY: NestedKey = "element_log_probs"
REFERENCE_LOG_PROBS_KEY: NestedKey = "reference_log_probs"
GUIDE_CHUNK_KEY: NestedKey = "guide_chunk"
GUIDE_WEIGHT_KEY: NestedKey = "guide_weight"

SUCCESS_KEY: NestedKey = "success"
IS_INIT_KEY: NestedKey = "is_init"
EPISODE_KEY: NestedKey = "episode_index"
FRAME_KEY: NestedKey = "frame_index"
EPISODE_SEED_KEY: NestedKey = "episode_seed"
NOISE_SEED_KEY: NestedKey = "noise_seed"

IS_DECISION_KEY: NestedKey = "is_decision"
DECISION_INDEX_KEY: NestedKey = "decision_index"
OBSERVATION_AGE_KEY: NestedKey = "observation_age"
OBSERVATION_NEEDED_KEY: NestedKey = "observation_needed"
IMAGE_IS_STALE_KEY: NestedKey = "image_is_stale"
OBSERVED_AT_KEY: NestedKey = "observed_at_s"
SESSION_KEY: NestedKey = "session_id"
IS_WAITING_KEY: NestedKey = "is_waiting"
EXECUTED_STEPS_KEY: NestedKey = "executed_steps"
IS_EXECUTED_KEY: NestedKey = "is_executed"
ROW_INDEX_KEY: NestedKey = "row_index"

OBSERVATION_FEATURES_KEY: NestedKey = "observation_features"
BASE_CHUNK_KEY: NestedKey = "base_chunk"
CANDIDATE_CHUNKS_KEY: NestedKey = "candidate_chunks"
CHUNK_NOISE_KEY: NestedKey = "chunk_noise"
RETURN_TO_GO_KEY: NestedKey = "return_to_go"
