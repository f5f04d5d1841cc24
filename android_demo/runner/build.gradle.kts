plugins {
    alias(libs.plugins.kotlin.jvm)
    application
}

// The engine's sources, not the library: an AAR cannot be a dependency of a plain JVM module.
kotlin {
    sourceSets["main"].kotlin {
        srcDir("../edgekit/src/main/kotlin")
        exclude("dev/edgekit/android/**")
    }
    compilerOptions { jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8 }
}

java {
    sourceCompatibility = JavaVersion.VERSION_1_8
    targetCompatibility = JavaVersion.VERSION_1_8
}

application { mainClass = "dev.edgekit.runner.Main" }

dependencies {
    implementation(libs.onnxruntime.jvm)
    implementation(libs.coroutines)
}
