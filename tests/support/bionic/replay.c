// replay MODEL OPERATORS THREADS: runs a model once on Android's ONNX Runtime with an operator library.
//
// Beside the model, NAME.bin holds each input's raw bytes, and NAME.out gets each output's. Shapes of inputs are fixed
// in the model. Prints what the library says it is, after the run.
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "onnxruntime_c_api.h"

enum { MOST = 64, RANK = 8, PATH = 4096 };

// Code for 64-bit Android reads its stack guard 40 bytes after the thread pointer. The executable's thread-local data
// begins 16 bytes after it, so with this nothing else lives there that could change while a function runs.
static _Thread_local volatile char bionic_slots[256] __attribute__((aligned(16)));

static const OrtApi* ort;

static void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  vfprintf(stderr, format, values);
  va_end(values);
  fputc('\n', stderr);
  fflush(NULL);
  _exit(1);
}

static void check(OrtStatus* status) {
  if (status) fail("%s", ort->GetErrorMessage(status));
}

static void* symbol(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_NOW);
  void* found = handle ? dlsym(handle, name) : NULL;
  if (!found) fail("%s", dlerror());
  return found;
}

static FILE* beside(const char* model, const char* name, const char* suffix, const char* mode) {
  char path[PATH];
  const char* slash = strrchr(model, '/');
  snprintf(path, sizeof path, "%.*s%s%s", slash ? (int)(slash - model + 1) : 0, model, name, suffix);
  FILE* file = fopen(path, mode);
  if (!file) fail("%s: cannot be opened", path);
  return file;
}

static OrtValue* read_input(OrtSession* session, size_t index, const char* model, const char* name) {
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* shape;
  ONNXTensorElementDataType element;
  OrtAllocator* allocator;
  OrtValue* value;
  size_t rank, size;
  int64_t dims[RANK];
  void* data;
  check(ort->SessionGetInputTypeInfo(session, index, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &shape));
  check(ort->GetTensorElementType(shape, &element));
  check(ort->GetDimensionsCount(shape, &rank));
  if (rank > RANK) fail("%s: has more than %d dimensions", name, RANK);
  check(ort->GetDimensions(shape, dims, rank));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->CreateTensorAsOrtValue(allocator, dims, rank, element, &value));
  check(ort->GetTensorMutableData(value, &data));
  check(ort->GetTensorSizeInBytes(value, &size));
  FILE* file = beside(model, name, ".bin", "rb");
  const size_t read = fread(data, 1, size, file);
  if (read != size || fgetc(file) != EOF) fail("%s.bin: expected %zu bytes", name, size);
  fclose(file);
  ort->ReleaseTypeInfo(type);
  return value;
}

static void write_output(OrtValue* value, const char* model, const char* name) {
  size_t size;
  void* data;
  check(ort->GetTensorMutableData(value, &data));
  check(ort->GetTensorSizeInBytes(value, &size));
  FILE* file = beside(model, name, ".out", "wb");
  if (fwrite(data, 1, size, file) != size || fclose(file)) fail("%s.out: cannot be written", name);
}

static void run(OrtSession* session, const char* model) {
  size_t inputs, outputs;
  char *input_names[MOST], *output_names[MOST];
  OrtValue *given[MOST], *results[MOST] = {NULL};
  OrtAllocator* allocator;
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  check(ort->SessionGetInputCount(session, &inputs));
  check(ort->SessionGetOutputCount(session, &outputs));
  if (inputs > MOST || outputs > MOST) fail("%s: more than %d inputs or outputs", model, MOST);
  for (size_t i = 0; i < inputs; ++i) {
    check(ort->SessionGetInputName(session, i, allocator, &input_names[i]));
    given[i] = read_input(session, i, model, input_names[i]);
  }
  for (size_t i = 0; i < outputs; ++i) check(ort->SessionGetOutputName(session, i, allocator, &output_names[i]));
  check(ort->Run(session, NULL, (const char* const*)input_names, (const OrtValue* const*)given, inputs,
                 (const char* const*)output_names, outputs, results));
  for (size_t i = 0; i < outputs; ++i) write_output(results[i], model, output_names[i]);
}

int main(int count, char** arguments) {
  if (count != 4) fail("usage: replay MODEL OPERATORS THREADS");
  bionic_slots[0] = 0;
  const OrtApiBase* (*base)(void) = (const OrtApiBase* (*)(void))symbol("libonnxruntime.so", "OrtGetApiBase");
  const char* (*version)(void) = (const char* (*)(void))symbol(arguments[2], "EdgekitOpsVersion");
  ort = base()->GetApi(ORT_API_VERSION);
  if (!ort) fail("libonnxruntime.so: is %s, older than its headers", base()->GetVersionString());
  OrtEnv* environment;
  OrtSessionOptions* options;
  OrtSession* session;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "replay", &environment));
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, atoi(arguments[3])));
  check(ort->RegisterCustomOpsLibrary_V2(options, arguments[2]));
  check(ort->CreateSession(environment, arguments[1], options, &session));
  run(session, arguments[1]);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(environment);
  printf("%s\n", version());
  return 0;
}
