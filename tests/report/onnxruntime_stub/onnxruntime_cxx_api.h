// What the C++ program of a report calls of ONNX Runtime, declared and not defined: enough to check its types.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#define ORT_TSTR(text) text
using ORTCHAR_T = char;
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
struct OrtMemoryInfo;

namespace Ort {
struct Env {
  Env(OrtLoggingLevel level, const char* name);
};
struct SessionOptions {
  SessionOptions& SetIntraOpNumThreads(int threads);
};
struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType kind, OrtMemType place);
  operator const OrtMemoryInfo*() const;
};
struct TensorTypeAndShapeInfo {
  std::vector<int64_t> GetShape() const;
};
struct Value {
  Value(const Value&) = delete;
  Value(Value&&) noexcept;
  template <typename T>
  static Value CreateTensor(const OrtMemoryInfo* memory, T* data, size_t count, const int64_t* shape, size_t rank);
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct Session {
  Session(const Env& env, const ORTCHAR_T* path, const SessionOptions& options);
  std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs, size_t count,
                         const char* const* output_names, size_t output_count);
};
}  // namespace Ort
