plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
}

// The operators, which `make kernels` compiles at the root of the repository.
val operators = layout.buildDirectory.dir("operators")
val copyOperators by tasks.registering(Sync::class) {
    val native = rootDir.resolve("../edgekit/lowbit/native")
    into(operators)
    for (abi in listOf("arm64-v8a", "x86_64")) {
        from(native.resolve("android-$abi/libedgekit_ops.so")) { into(abi) }
    }
    doFirst {
        require(native.resolve("android-arm64-v8a/libedgekit_ops.so").isFile) {
            "$native has no operators for Android; run `make kernels` in the repository first"
        }
    }
}

android {
    namespace = "dev.edgekit"
    compileSdk = 34

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    sourceSets["main"].jniLibs.srcDir(operators.get().asFile)

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

kotlin {
    explicitApi()
    compilerOptions { jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8 }
}

tasks.named("preBuild") { dependsOn(copyOperators) }

dependencies {
    api(libs.onnxruntime.android)
    api(libs.coroutines)
    testImplementation(libs.junit)
    testImplementation(libs.onnxruntime.jvm) // the same classes with libraries for the desktop
}
