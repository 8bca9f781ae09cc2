#include "server/model/testing/forward_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace palimpsest::testing {
namespace {

using Vec = std::vector<double>;

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Silu(double x) { return x * Sigmoid(x); }

class Reference {
 public:
  explicit Reference(const RandomCheckpointSpec& spec) : spec_(spec) {
    for (const TensorToWrite& tensor : RandomCheckpointTensors(spec)) {
      Vec values(tensor.bytes.size() / SizeOf(tensor.dtype));
      for (size_t i = 0; i < values.size(); ++i) {
        if (tensor.dtype == DType::kF32) {
          float value;
          std::memcpy(&value, tensor.bytes.data() + 4 * i, 4);
          values[i] = value;
        } else {
          uint16_t bits;
          std::memcpy(&bits, tensor.bytes.data() + 2 * i, 2);
          values[i] = tensor.dtype == DType::kBF16 ? FloatFromBF16(bits) : FloatFromF16(bits);
        }
      }
      tensors_[tensor.name] = std::move(values);
    }
    state_.resize(spec.layers, Vec(int64_t{spec.value_heads} * spec.value_dim * spec.key_dim));
    history_.resize(spec.layers);
  }

  Vec Token(int32_t token) {
    const int64_t d = spec_.hidden;
    const Vec& table = At("model.embeddings.weight");
    Vec x(table.begin() + token * d, table.begin() + (token + 1) * d);
    for (int32_t i = 0; i < spec_.layers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      Add(x, Mixer(i, Norm(x, At(layer + "attn_norm.weight"))));
      const Vec h = Norm(x, At(layer + "mlp_norm.weight"));
      Vec inner = Times(layer + "mlp.gate_proj.weight", h);
      const Vec up = Times(layer + "mlp.up_proj.weight", h);
      for (size_t j = 0; j < inner.size(); ++j) inner[j] = Silu(inner[j]) * up[j];
      Add(x, Times(layer + "mlp.down_proj.weight", inner));
    }
    return Times(spec_.tied ? "model.embeddings.weight" : "lm_head.weight", Norm(x, At("model.norm.weight")));
  }

 private:
  const Vec& At(const std::string& name) const { return tensors_.at(name); }

  static void Add(Vec& x, const Vec& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  Vec Times(const std::string& name, const Vec& x) const {
    const Vec& matrix = At(name);
    Vec y(matrix.size() / x.size());
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += matrix[o * x.size() + i] * x[i];
    }
    return y;
  }
  Vec Norm(const Vec& x, const Vec& weight) const {
    double squares = 0;
    for (double value : x) squares += value * value;
    const double scale = 1 / std::sqrt(squares / x.size() + double{spec_.norm_eps});
    Vec y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
    return y;
  }

  // Pushes `x` onto the history of that projection and convolves over the last inputs.
  Vec Conv(int32_t layer, const std::string& which, const std::string& name, Vec x) {
    if (spec_.conv_size == 0) return x;
    auto& history = history_[layer][which];
    history.push_back(std::move(x));
    const Vec& weight = At(name + ".weight");
    const int32_t width = spec_.conv_size;
    Vec y(history.back().size());
    for (size_t c = 0; c < y.size(); ++c) {
      for (int32_t back = 0; back < width && back < static_cast<int32_t>(history.size()); ++back) {
        y[c] += weight[c * width + (width - 1 - back)] * history[history.size() - 1 - back][c];
      }
      if (spec_.conv_bias) y[c] += At(name + ".bias")[c];
    }
    return y;
  }

  Vec Keys(Vec x, double scale) const {
    const bool delta_net = spec_.model_type == "delta_net";
    const std::string activation = delta_net ? spec_.qk_activation : "silu";
    for (double& value : x) {
      if (activation == "silu") value = Silu(value);
      if (activation == "relu") value = std::max(value, 0.0);
      if (activation == "elu") value = value > 0 ? value + 1 : std::exp(value);
    }
    for (size_t head = 0; head < x.size(); head += spec_.key_dim) {
      double sum = 0;
      for (int32_t c = 0; c < spec_.key_dim; ++c) {
        sum += delta_net && spec_.qk_norm == "sum" ? std::abs(x[head + c]) : x[head + c] * x[head + c];
      }
      const double divisor = delta_net && spec_.qk_norm == "sum" ? std::max(sum, 1e-6) : std::sqrt(sum + 1e-6);
      for (int32_t c = 0; c < spec_.key_dim; ++c) x[head + c] *= scale / divisor;
    }
    return x;
  }

  Vec Mixer(int32_t index, const Vec& h) {
    const std::string attn = absl::StrCat("model.layers.", index, ".attn.");
    const bool gated = spec_.model_type == "gated_deltanet";
    const int32_t dk = spec_.key_dim, dv = spec_.value_dim;
    const Vec q = Keys(Conv(index, "q", attn + "q_conv1d", Times(attn + "q_proj.weight", h)), 1 / std::sqrt(dk));
    const Vec k = Keys(Conv(index, "k", attn + "k_conv1d", Times(attn + "k_proj.weight", h)), 1);
    Vec v = Conv(index, "v", attn + "v_conv1d", Times(attn + "v_proj.weight", h));
    for (double& value : v) value = Silu(value);
    Vec beta(spec_.value_heads, 1.0), decay(spec_.value_heads, 1.0);
    if (gated || spec_.use_beta) {
      beta = Times(attn + "b_proj.weight", h);
      for (double& value : beta) value = Sigmoid(value);
    }
    if (gated) {
      const Vec a = Times(attn + "a_proj.weight", h);
      for (int32_t j = 0; j < spec_.value_heads; ++j) {
        decay[j] = std::exp(-std::exp(At(attn + "A_log")[j]) * std::log1p(std::exp(a[j] + At(attn + "dt_bias")[j])));
      }
    }
    Vec out;
    const Vec gate = spec_.use_gate ? Times(attn + "g_proj.weight", h) : Vec();
    for (int32_t j = 0; j < spec_.value_heads; ++j) {
      const double* kj = &k[j / (spec_.value_heads / spec_.heads) * dk];
      const double* qj = &q[j / (spec_.value_heads / spec_.heads) * dk];
      Vec read(dv);
      for (int32_t r = 0; r < dv; ++r) {
        double* row = &state_[index][(int64_t{j} * dv + r) * dk];
        double retrieved = 0;
        for (int32_t c = 0; c < dk; ++c) retrieved += (row[c] *= decay[j]) * kj[c];
        const double u = beta[j] * (spec_.allow_neg_eigval ? 2 : 1) * (v[j * dv + r] - retrieved);
        for (int32_t c = 0; c < dk; ++c) read[r] += (row[c] += u * kj[c]) * qj[c];
      }
      read = Norm(read, At(attn + "o_norm.weight"));
      for (int32_t r = 0; r < dv; ++r) out.push_back(read[r] * (spec_.use_gate ? Gate(gate[j * dv + r]) : 1));
    }
    return Times(attn + "o_proj.weight", out);
  }

  double Gate(double x) const { return spec_.gate_activation == "sigmoid" ? Sigmoid(x) : Silu(x); }

  const RandomCheckpointSpec& spec_;
  std::map<std::string, Vec> tensors_;
  std::vector<Vec> state_;                                        // per layer [HV, V, K]
  std::vector<std::map<std::string, std::vector<Vec>>> history_;  // per layer and projection: all inputs so far
};

}  // namespace

std::vector<double> ReferenceLogits(const RandomCheckpointSpec& spec, std::span<const int32_t> tokens) {
  Reference reference(spec);
  Vec logits;
  for (int32_t token : tokens) {
    const Vec row = reference.Token(token);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

}  // namespace palimpsest::testing
