// What Java and Kotlin programs ask the library: dev.edgekit.Operators.version(), the text of EdgekitOpsVersion.
//
// Of JNI only what is needed is written out. By the JNI Specification (chapter 4, "Interface Function Table") a JNIEnv
// points to a table of functions that only ever grows; NewStringUTF is entry 167.
#include "export.h"

namespace {

enum JniIndex : int { kJniNewStringUtf = 167 };

struct JniTable {
  void* entries[1];
};
using JniEnv = const JniTable*;
struct JniObject;

}  // namespace

EK_EXPORT JniObject* EK_CALL Java_dev_edgekit_Operators_version(JniEnv* env, JniObject*) {
  using NewStringUtf = JniObject*(EK_CALL*)(JniEnv*, const char*);
  const auto make = reinterpret_cast<NewStringUtf>((*env)->entries[kJniNewStringUtf]);
  return make(env, EdgekitOpsVersion());  // ASCII, as "modified UTF-8" has it; null when Java's memory is exhausted
}
